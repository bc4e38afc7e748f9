-- What migrations/sql/ adds up to. Written by `python -m fc_operator.store.picture`; don't edit.

CREATE FUNCTION fc_check_evaluation_transition() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF OLD.status = 'pending' AND NEW.status <> 'pending'
        OR OLD.status = 'running' AND NEW.status <> 'running' THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'illegal transition of evaluations.% from % to %', OLD.id, OLD.status, NEW.status
        USING ERRCODE = 'check_violation';
END;
$$;

CREATE FUNCTION fc_check_transition() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF OLD.status IN ('pending', 'running') AND NEW.status NOT IN ('pending', 'running') THEN
        RETURN NEW;
    END IF;
    IF OLD.status = 'pending' AND NEW.status = 'running'
        OR OLD.status <> 'pending' AND NEW.status = 'pending' THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'illegal transition of %.% from % to %', TG_TABLE_NAME, OLD.id, OLD.status, NEW.status
        USING ERRCODE = 'check_violation';
END;
$$;

CREATE FUNCTION fc_longest(a integer, b integer, plain integer) RETURNS integer
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ SELECT nullif(CASE WHEN 0 IN (coalesce(a, plain), coalesce(b, plain)) THEN 0
        ELSE greatest(coalesce(a, plain), coalesce(b, plain)) END, plain) $$;

CREATE FUNCTION fc_outputs_valid(status text, check_mode boolean) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ SELECT check_mode OR status IN ('succeeded', 'failed_with_output', 'non_deterministic') $$;

CREATE FUNCTION fc_uuid_v7() RETURNS uuid
    LANGUAGE sql PARALLEL SAFE
    AS $$
    SELECT encode(
        set_bit(set_bit(
            overlay(uuid_send(gen_random_uuid()) PLACING
                substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3)
                FROM 1 FOR 6),
            52, 1), 53, 1), 'hex')::uuid
$$;

CREATE FUNCTION update_updated_at_column() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    NEW.updated_at = NOW();
    RETURN NEW;
END;
$$;

CREATE TABLE jobsets (
    id uuid DEFAULT fc_uuid_v7() NOT NULL,
    project_id uuid NOT NULL,
    name text NOT NULL,
    nix_expression text NOT NULL,
    flake_mode boolean DEFAULT true NOT NULL,
    check_interval integer DEFAULT 60 NOT NULL,
    branch text,
    scheduling_shares integer DEFAULT 100 NOT NULL,
    state text DEFAULT 'enabled'::character varying NOT NULL,
    last_checked_at timestamp with time zone,
    keep_nr integer DEFAULT 3 NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    number bigint NOT NULL,
    description text DEFAULT ''::text NOT NULL,
    systems text[] DEFAULT '{}'::text[] NOT NULL,
    only_build_latest boolean DEFAULT false NOT NULL,
    timeout_s integer,
    max_silent_s integer,
    evaluation_timeout_s integer,
    allow_import_from_derivation boolean DEFAULT false NOT NULL,
    suspended boolean DEFAULT false NOT NULL,
    deleting_at timestamp with time zone,
    generation bigint DEFAULT 1 NOT NULL,
    shot_generation bigint DEFAULT 0 NOT NULL,
    next_check_at timestamp with time zone DEFAULT now(),
    check_reason text DEFAULT 'declared'::text NOT NULL,
    check_lease_owner text,
    check_lease_until timestamp with time zone,
    requested_commit text,
    requested_force boolean DEFAULT false NOT NULL,
    last_commit text,
    last_error text,
    check_failures integer DEFAULT 0 NOT NULL,
    CONSTRAINT jobsets_check_interval_check CHECK ((check_interval >= 0)),
    CONSTRAINT jobsets_check_reason_check CHECK ((check_reason = ANY (ARRAY['declared'::text, 'interval'::text, 'webhook'::text, 'request'::text, 'input'::text]))),
    CONSTRAINT jobsets_evaluation_timeout_s_check CHECK ((evaluation_timeout_s > 0)),
    CONSTRAINT jobsets_keep_nr_check CHECK ((keep_nr >= 0)),
    CONSTRAINT jobsets_max_silent_s_check CHECK ((max_silent_s > 0)),
    CONSTRAINT jobsets_name_check CHECK ((name ~ '^[A-Za-z_][A-Za-z0-9_.-]{0,62}$'::text)),
    CONSTRAINT jobsets_scheduling_shares_check CHECK (((scheduling_shares >= 1) AND (scheduling_shares <= 1000000))),
    CONSTRAINT jobsets_state_check CHECK ((state = ANY (ARRAY[('disabled'::character varying)::text, ('enabled'::character varying)::text, ('one_shot'::character varying)::text, ('one_at_a_time'::character varying)::text]))),
    CONSTRAINT jobsets_timeout_s_check CHECK ((timeout_s > 0))
);

CREATE TABLE projects (
    id uuid DEFAULT fc_uuid_v7() NOT NULL,
    name text NOT NULL,
    description text,
    repository_url text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    number bigint NOT NULL,
    display_name text DEFAULT ''::text NOT NULL,
    homepage text DEFAULT ''::text NOT NULL,
    owner text DEFAULT ''::text NOT NULL,
    visibility text DEFAULT 'public'::text NOT NULL,
    namespace text DEFAULT 'default'::text NOT NULL,
    credentials_secret text,
    deletion_policy text DEFAULT 'retain'::text NOT NULL,
    suspended boolean DEFAULT false NOT NULL,
    deleting_at timestamp with time zone,
    cache_public boolean,
    pods jsonb DEFAULT '{}'::jsonb NOT NULL,
    CONSTRAINT projects_deletion_policy_check CHECK ((deletion_policy = ANY (ARRAY['retain'::text, 'delete'::text]))),
    CONSTRAINT projects_name_check CHECK ((name ~ '^[A-Za-z_][A-Za-z0-9_-]{0,62}$'::text)),
    CONSTRAINT projects_repository_url_check CHECK (((repository_url !~* '^(ext::|file:)'::text) AND ("left"(repository_url, 1) <> '-'::text))),
    CONSTRAINT projects_visibility_check CHECK ((visibility = ANY (ARRAY['public'::text, 'private'::text])))
);

CREATE VIEW active_jobsets AS
 SELECT j.id,
    j.project_id,
    j.name,
    j.nix_expression,
    j.flake_mode,
    j.check_interval,
    j.branch,
    j.scheduling_shares,
    j.created_at,
    j.updated_at,
    j.state,
    j.last_checked_at,
    j.keep_nr,
    p.name AS project_name,
    p.repository_url
   FROM (jobsets j
     JOIN projects p ON ((p.id = j.project_id)))
  WHERE ((j.state = ANY (ARRAY['enabled'::text, 'one_at_a_time'::text, 'one_shot'::text])) AND (NOT ((j.state = 'one_shot'::text) AND (j.shot_generation >= j.generation))) AND (NOT j.suspended) AND (NOT p.suspended) AND (j.deleting_at IS NULL) AND (p.deleting_at IS NULL));

CREATE TABLE api_keys (
    id uuid DEFAULT fc_uuid_v7() NOT NULL,
    name text NOT NULL,
    key_hash text NOT NULL,
    role text DEFAULT 'read-only'::character varying NOT NULL,
    user_id uuid,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    last_used_at timestamp with time zone,
    prefix text DEFAULT ''::text NOT NULL,
    expires_at timestamp with time zone,
    revoked_at timestamp with time zone,
    CONSTRAINT api_keys_role_check CHECK ((role = ANY (ARRAY[('admin'::character varying)::text, ('create-projects'::character varying)::text, ('restart-jobs'::character varying)::text, ('cancel-build'::character varying)::text, ('bump-to-front'::character varying)::text, ('eval-jobset'::character varying)::text, ('read-only'::character varying)::text])))
);

CREATE TABLE attempts (
    step_id bigint NOT NULL,
    attempt integer NOT NULL,
    task_id uuid NOT NULL,
    executor text NOT NULL,
    builder_id uuid,
    builder_name text DEFAULT ''::text NOT NULL,
    owner text NOT NULL,
    build_id uuid,
    claimed_at timestamp with time zone DEFAULT now() NOT NULL,
    started_at timestamp with time zone,
    ended_at timestamp with time zone,
    status text,
    reason text DEFAULT ''::text NOT NULL,
    message text,
    exit_code integer,
    signal integer,
    phases jsonb DEFAULT '[]'::jsonb NOT NULL,
    peak_memory_bytes bigint,
    cpu_ms bigint,
    log_bytes bigint DEFAULT 0 NOT NULL,
    log_lines bigint DEFAULT 0 NOT NULL,
    log_key text,
    CONSTRAINT attempts_status_check CHECK ((status = ANY (ARRAY['succeeded'::text, 'failed'::text, 'dependency_failed'::text, 'aborted'::text, 'cancelled'::text, 'failed_with_output'::text, 'timeout'::text, 'cached_failure'::text, 'unsupported_system'::text, 'log_limit_exceeded'::text, 'nar_size_limit_exceeded'::text, 'non_deterministic'::text, 'lost'::text])))
);

CREATE TABLE audit_log (
    id uuid DEFAULT fc_uuid_v7() NOT NULL,
    at timestamp with time zone DEFAULT now() NOT NULL,
    actor text NOT NULL,
    action text NOT NULL,
    object text NOT NULL,
    details jsonb DEFAULT '{}'::jsonb NOT NULL
);

CREATE TABLE build_dependencies (
    build_id uuid NOT NULL,
    dependency_build_id uuid NOT NULL
);

CREATE TABLE build_metrics (
    id uuid DEFAULT fc_uuid_v7() NOT NULL,
    build_id uuid NOT NULL,
    metric_name text NOT NULL,
    metric_value double precision NOT NULL,
    unit text DEFAULT ''::text NOT NULL,
    collected_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT build_metrics_name_check CHECK ((metric_name ~ '^[A-Za-z0-9._-]+$'::text)),
    CONSTRAINT build_metrics_unit_check CHECK ((unit ~ '^[A-Za-z0-9._%-]*$'::text))
);

CREATE TABLE builds (
    id uuid DEFAULT fc_uuid_v7() NOT NULL,
    evaluation_id uuid NOT NULL,
    job_name text NOT NULL,
    drv_path text NOT NULL,
    status text NOT NULL,
    started_at timestamp with time zone,
    completed_at timestamp with time zone,
    log_path text,
    build_output_path text,
    error_message text,
    priority integer DEFAULT 100 NOT NULL,
    retry_count integer DEFAULT 0 NOT NULL,
    outputs jsonb,
    is_aggregate boolean DEFAULT false NOT NULL,
    constituents jsonb,
    builder_id uuid,
    signed boolean DEFAULT false NOT NULL,
    system text,
    keep boolean DEFAULT false NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    number bigint NOT NULL,
    attr_path text[] DEFAULT '{}'::text[] NOT NULL,
    nix_name text DEFAULT ''::text NOT NULL,
    description text DEFAULT ''::text NOT NULL,
    homepage text DEFAULT ''::text NOT NULL,
    license text DEFAULT ''::text NOT NULL,
    maintainers text DEFAULT ''::text NOT NULL,
    timeout_s integer,
    max_silent_s integer,
    is_channel boolean DEFAULT false NOT NULL,
    is_new boolean DEFAULT true NOT NULL,
    cached boolean DEFAULT false NOT NULL,
    status_reason text DEFAULT ''::text NOT NULL,
    step_id bigint,
    root_cause_step_id bigint,
    release_name text,
    warnings text[] DEFAULT '{}'::text[] NOT NULL,
    bumped_at timestamp with time zone,
    kept_by text,
    kept_at timestamp with time zone,
    CONSTRAINT builds_status_check CHECK ((status = ANY (ARRAY['pending'::text, 'running'::text, 'succeeded'::text, 'failed'::text, 'dependency_failed'::text, 'aborted'::text, 'cancelled'::text, 'failed_with_output'::text, 'timeout'::text, 'cached_failure'::text, 'unsupported_system'::text, 'log_limit_exceeded'::text, 'nar_size_limit_exceeded'::text, 'non_deterministic'::text])))
);

CREATE TABLE evaluations (
    id uuid DEFAULT fc_uuid_v7() NOT NULL,
    jobset_id uuid NOT NULL,
    commit_hash text NOT NULL,
    evaluation_time timestamp with time zone DEFAULT now() NOT NULL,
    status text NOT NULL,
    error_message text,
    inputs_hash text,
    pr_number integer,
    pr_head_branch text,
    pr_base_branch text,
    pr_action text,
    number bigint NOT NULL,
    trigger text DEFAULT 'interval'::text NOT NULL,
    trust text DEFAULT 'trusted'::text NOT NULL,
    force boolean DEFAULT false NOT NULL,
    branch text,
    tree_hash text,
    subject text DEFAULT ''::text NOT NULL,
    author text DEFAULT ''::text NOT NULL,
    evaluator text,
    evaluator_version text,
    reused_from uuid,
    status_reason text DEFAULT ''::text NOT NULL,
    error_kind text,
    started_at timestamp with time zone,
    finished_at timestamp with time zone,
    checkout_ms integer,
    evaluation_ms integer,
    jobs integer DEFAULT 0 NOT NULL,
    jobs_new integer DEFAULT 0 NOT NULL,
    errors integer DEFAULT 0 NOT NULL,
    builds_ended_at timestamp with time zone,
    build_counts jsonb,
    task_id uuid,
    attempt integer DEFAULT 0 NOT NULL,
    cancel_requested boolean DEFAULT false NOT NULL,
    CONSTRAINT evaluations_commit_hash_check CHECK ((commit_hash ~ '^([0-9a-f]{40}|[0-9a-f]{64})$'::text)),
    CONSTRAINT evaluations_error_kind_check CHECK ((error_kind = ANY (ARRAY['fetch'::text, 'evaluation'::text, 'limit'::text, 'internal'::text]))),
    CONSTRAINT evaluations_status_check CHECK ((status = ANY (ARRAY['pending'::text, 'running'::text, 'completed'::text, 'failed'::text, 'cancelled'::text, 'timed_out'::text]))),
    CONSTRAINT evaluations_trigger_check CHECK ((trigger = ANY (ARRAY['declared'::text, 'interval'::text, 'webhook'::text, 'request'::text, 'input'::text]))),
    CONSTRAINT evaluations_trust_check CHECK ((trust = ANY (ARRAY['trusted'::text, 'unreviewed'::text])))
);

CREATE TABLE step_outputs (
    step_id bigint NOT NULL,
    name text NOT NULL,
    path text,
    nar_hash text,
    nar_size bigint
);

CREATE TABLE steps (
    id bigint NOT NULL,
    drv_path text NOT NULL,
    name text NOT NULL,
    class_id integer NOT NULL,
    status text DEFAULT 'pending'::text NOT NULL,
    blockers integer DEFAULT 0 NOT NULL,
    attempt integer DEFAULT 0 NOT NULL,
    infra_failures integer DEFAULT 0 NOT NULL,
    free_losses integer DEFAULT 0 NOT NULL,
    priority integer DEFAULT 100 NOT NULL,
    bump bigint DEFAULT 0 NOT NULL,
    jobset_id uuid,
    timeout_s integer,
    max_silent_s integer,
    is_fixed_output boolean DEFAULT false NOT NULL,
    prefer_local boolean DEFAULT false NOT NULL,
    check_mode boolean DEFAULT false NOT NULL,
    build_id uuid,
    root_cause_step_id bigint,
    status_reason text DEFAULT ''::text NOT NULL,
    error_message text,
    not_before timestamp with time zone,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    runnable_at timestamp with time zone,
    started_at timestamp with time zone,
    finished_at timestamp with time zone,
    CONSTRAINT steps_blockers_check CHECK ((blockers >= 0)),
    CONSTRAINT steps_status_check CHECK ((status = ANY (ARRAY['pending'::text, 'running'::text, 'succeeded'::text, 'failed'::text, 'dependency_failed'::text, 'aborted'::text, 'cancelled'::text, 'failed_with_output'::text, 'timeout'::text, 'cached_failure'::text, 'unsupported_system'::text, 'log_limit_exceeded'::text, 'nar_size_limit_exceeded'::text, 'non_deterministic'::text])))
)
WITH (fillfactor='85');

CREATE VIEW build_metrics_summary AS
 SELECT b.id AS build_id,
    b.job_name,
    b.status,
    b.system,
    e.jobset_id,
    j.project_id,
    b.started_at,
    b.completed_at,
    EXTRACT(epoch FROM (b.completed_at - b.started_at)) AS duration_seconds,
    (o.nar_size)::double precision AS output_size_bytes,
    (a.peak_memory_bytes)::double precision AS peak_memory_bytes,
    (o.nar_size)::double precision AS nar_size_bytes
   FROM (((((builds b
     JOIN evaluations e ON ((e.id = b.evaluation_id)))
     JOIN jobsets j ON ((j.id = e.jobset_id)))
     LEFT JOIN steps s ON ((s.id = b.step_id)))
     LEFT JOIN attempts a ON (((a.step_id = s.id) AND (a.attempt = s.attempt))))
     LEFT JOIN LATERAL ( SELECT sum(so.nar_size) AS nar_size
           FROM step_outputs so
          WHERE (so.step_id = b.step_id)) o ON (true));

CREATE TABLE build_products (
    id uuid DEFAULT fc_uuid_v7() NOT NULL,
    build_id uuid NOT NULL,
    name text NOT NULL,
    path text NOT NULL,
    sha256_hash text,
    file_size bigint,
    content_type text,
    is_directory boolean DEFAULT false NOT NULL,
    nr integer DEFAULT 1 NOT NULL,
    type text DEFAULT 'nix-build'::text NOT NULL,
    subtype text DEFAULT ''::text NOT NULL,
    default_path text DEFAULT ''::text NOT NULL,
    output text DEFAULT 'out'::text NOT NULL,
    CONSTRAINT build_products_sha256_check CHECK ((sha256_hash ~ '^[0-9a-f]{64}$'::text))
);

CREATE VIEW build_stats AS
 SELECT count(*) AS total_builds,
    count(*) FILTER (WHERE (status = 'succeeded'::text)) AS completed_builds,
    count(*) FILTER (WHERE (status <> ALL (ARRAY['pending'::text, 'running'::text, 'succeeded'::text, 'cancelled'::text]))) AS failed_builds,
    count(*) FILTER (WHERE (status = 'running'::text)) AS running_builds,
    count(*) FILTER (WHERE (status = 'pending'::text)) AS pending_builds,
    (avg(EXTRACT(epoch FROM (completed_at - started_at))) FILTER (WHERE (NOT cached)))::double precision AS avg_duration_seconds
   FROM builds;

CREATE TABLE build_steps (
    id uuid DEFAULT fc_uuid_v7() NOT NULL,
    build_id uuid NOT NULL,
    step_number integer NOT NULL,
    command text NOT NULL,
    error_output text,
    started_at timestamp with time zone DEFAULT now() NOT NULL,
    completed_at timestamp with time zone,
    exit_code integer,
    step_id bigint,
    attempt integer,
    drv_path text,
    status text
);

ALTER TABLE builds ALTER COLUMN number ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME builds_number_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE cache_nars (
    uploaded_by text NOT NULL,
    upload_hash text NOT NULL,
    compression text NOT NULL,
    nar_hash text NOT NULL,
    nar_size bigint NOT NULL,
    flat_hash text,
    file_hash text NOT NULL,
    file_size bigint NOT NULL,
    object_key text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT cache_nars_file_size_check CHECK ((file_size > 0)),
    CONSTRAINT cache_nars_nar_size_check CHECK ((nar_size > 0))
);

CREATE TABLE cache_path_projects (
    hash_part text NOT NULL,
    project_id uuid NOT NULL
);

CREATE TABLE cache_paths (
    hash_part text NOT NULL,
    store_path text NOT NULL,
    nar_hash text NOT NULL,
    nar_size bigint NOT NULL,
    file_hash text NOT NULL,
    file_size bigint NOT NULL,
    object_key text NOT NULL,
    reference_names text[] DEFAULT '{}'::text[] NOT NULL,
    deriver text,
    content_address text,
    signatures text[] DEFAULT '{}'::text[] NOT NULL,
    uploaded_by text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT cache_paths_file_size_check CHECK ((file_size > 0)),
    CONSTRAINT cache_paths_hash_part_check CHECK ((hash_part ~ '^[0-9a-df-np-sv-z]{32}$'::text)),
    CONSTRAINT cache_paths_nar_size_check CHECK ((nar_size > 0))
);

CREATE TABLE channels (
    id uuid DEFAULT fc_uuid_v7() NOT NULL,
    project_id uuid NOT NULL,
    name text NOT NULL,
    jobset_id uuid NOT NULL,
    current_evaluation_id uuid,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    promoted_at timestamp with time zone
);

CREATE TABLE config_repositories (
    id uuid DEFAULT fc_uuid_v7() NOT NULL,
    name text NOT NULL,
    namespace text DEFAULT 'default'::text NOT NULL,
    kind text DEFAULT 'git'::text NOT NULL,
    url text NOT NULL,
    branch text,
    path text DEFAULT ''::text NOT NULL,
    interval_s integer DEFAULT 60 NOT NULL,
    prune boolean DEFAULT true NOT NULL,
    credentials_secret text,
    suspended boolean DEFAULT false NOT NULL,
    deleting_at timestamp with time zone,
    bootstrap boolean DEFAULT false NOT NULL,
    last_revision text,
    last_tree text,
    last_synced_at timestamp with time zone,
    next_sync_at timestamp with time zone DEFAULT now(),
    sync_failures integer DEFAULT 0 NOT NULL,
    confirmed_revision text,
    conditions jsonb DEFAULT '[]'::jsonb NOT NULL,
    lease_owner text,
    lease_until timestamp with time zone,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT config_repositories_check CHECK (((kind = 'directory'::text) OR ((url !~* '^(ext::|file:)'::text) AND ("left"(url, 1) <> '-'::text)))),
    CONSTRAINT config_repositories_interval_s_check CHECK ((interval_s > 0)),
    CONSTRAINT config_repositories_kind_check CHECK ((kind = ANY (ARRAY['git'::text, 'directory'::text]))),
    CONSTRAINT config_repositories_name_check CHECK ((name ~ '^[A-Za-z_][A-Za-z0-9_.-]{0,62}$'::text))
);

CREATE TABLE constituents (
    build_id uuid NOT NULL,
    constituent_build_id uuid NOT NULL
);

CREATE TABLE duty_leases (
    name text NOT NULL,
    owner text NOT NULL,
    epoch bigint DEFAULT 1 NOT NULL,
    expires_at timestamp with time zone NOT NULL
);

CREATE TABLE evaluation_errors (
    evaluation_id uuid NOT NULL,
    nr integer NOT NULL,
    attr_path text[] DEFAULT '{}'::text[] NOT NULL,
    job_name text DEFAULT ''::text NOT NULL,
    message text NOT NULL
);

CREATE TABLE evaluation_inputs (
    evaluation_id uuid NOT NULL,
    name text NOT NULL,
    input_type text NOT NULL,
    value text NOT NULL,
    revision text,
    store_path text
);

ALTER TABLE evaluations ALTER COLUMN number ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME evaluations_number_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE failed_paths_cache (
    drv_path text NOT NULL,
    source_build_id uuid,
    failure_status text,
    failed_at timestamp with time zone DEFAULT now() NOT NULL,
    expires_at timestamp with time zone DEFAULT (now() + '1 day'::interval) NOT NULL,
    step_id bigint,
    attempt integer,
    CONSTRAINT failed_paths_cache_status_check CHECK ((failure_status = ANY (ARRAY['failed'::text, 'log_limit_exceeded'::text, 'nar_size_limit_exceeded'::text])))
);

CREATE TABLE jobset_inputs (
    id uuid DEFAULT fc_uuid_v7() NOT NULL,
    jobset_id uuid NOT NULL,
    name text NOT NULL,
    input_type text NOT NULL,
    value text NOT NULL,
    revision text,
    CONSTRAINT jobset_inputs_input_type_check CHECK ((input_type = ANY (ARRAY[('git'::character varying)::text, ('string'::character varying)::text, ('boolean'::character varying)::text, ('path'::character varying)::text, ('build'::character varying)::text]))),
    CONSTRAINT jobset_inputs_value_check CHECK (((input_type <> 'git'::text) OR ((value !~* '^(ext::|file:)'::text) AND ("left"(value, 1) <> '-'::text))))
);

CREATE TABLE jobset_usage (
    jobset_id uuid NOT NULL,
    hour timestamp with time zone NOT NULL,
    seconds double precision DEFAULT 0 NOT NULL
);

ALTER TABLE jobsets ALTER COLUMN number ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME jobsets_number_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE leases (
    step_id bigint NOT NULL,
    attempt integer NOT NULL,
    task_id uuid NOT NULL,
    owner text NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    cancel_requested boolean DEFAULT false NOT NULL
)
WITH (fillfactor='60', autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='5000', autovacuum_vacuum_cost_delay='0');

CREATE TABLE log_chunks (
    step_id bigint NOT NULL,
    attempt integer NOT NULL,
    start_offset bigint NOT NULL,
    data bytea NOT NULL,
    written_at timestamp with time zone DEFAULT now() NOT NULL
);
ALTER TABLE ONLY log_chunks ALTER COLUMN data SET STORAGE EXTERNAL;

CREATE TABLE managed_resources (
    id uuid DEFAULT fc_uuid_v7() NOT NULL,
    source_kind text NOT NULL,
    source_name text NOT NULL,
    kind text NOT NULL,
    namespace text NOT NULL,
    name text NOT NULL,
    identity text NOT NULL,
    owns boolean NOT NULL,
    object_id uuid,
    path text,
    line integer,
    uid text,
    revision text NOT NULL,
    spec_hash text NOT NULL,
    spec jsonb NOT NULL,
    generation bigint DEFAULT 1 NOT NULL,
    observed_generation bigint DEFAULT '-1'::integer NOT NULL,
    last_handled_request text,
    conditions jsonb DEFAULT '[]'::jsonb NOT NULL,
    pruning_since timestamp with time zone,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT managed_resources_kind_check CHECK ((kind = ANY (ARRAY['Project'::text, 'Jobset'::text, 'RemoteBuilder'::text, 'ConfigRepository'::text]))),
    CONSTRAINT managed_resources_source_kind_check CHECK ((source_kind = ANY (ARRAY['ConfigRepository'::text, 'Kubernetes'::text, 'Apply'::text, 'InRepository'::text])))
);

CREATE TABLE notification_configs (
    id uuid DEFAULT fc_uuid_v7() NOT NULL,
    project_id uuid NOT NULL,
    notification_type text NOT NULL,
    config jsonb DEFAULT '{}'::jsonb NOT NULL,
    enabled boolean DEFAULT true NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    name text DEFAULT ''::text NOT NULL,
    CONSTRAINT notification_configs_notification_type_check CHECK ((notification_type = ANY (ARRAY['github_status'::text, 'gitea_status'::text, 'forgejo_status'::text, 'gitlab_status'::text, 'webhook'::text, 'email'::text, 'slack'::text])))
);

CREATE TABLE notification_tasks (
    id uuid DEFAULT fc_uuid_v7() NOT NULL,
    notification_type text NOT NULL,
    payload jsonb NOT NULL,
    status text DEFAULT 'pending'::character varying NOT NULL,
    attempts integer DEFAULT 0 NOT NULL,
    max_attempts integer DEFAULT 5 NOT NULL,
    next_retry_at timestamp with time zone DEFAULT now() NOT NULL,
    last_error text,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    completed_at timestamp with time zone,
    lease_owner text,
    lease_until timestamp with time zone,
    CONSTRAINT notification_tasks_notification_type_check CHECK ((notification_type = ANY (ARRAY['github_status'::text, 'gitea_status'::text, 'forgejo_status'::text, 'gitlab_status'::text, 'webhook'::text, 'email'::text, 'slack'::text]))),
    CONSTRAINT notification_tasks_status_check CHECK ((status = ANY (ARRAY[('pending'::character varying)::text, ('running'::character varying)::text, ('completed'::character varying)::text, ('failed'::character varying)::text])))
);

CREATE TABLE project_members (
    id uuid DEFAULT fc_uuid_v7() NOT NULL,
    project_id uuid NOT NULL,
    user_id uuid NOT NULL,
    role text DEFAULT 'member'::character varying NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT project_members_role_check CHECK ((role = ANY (ARRAY['member'::text, 'maintainer'::text, 'admin'::text])))
);

ALTER TABLE projects ALTER COLUMN number ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME projects_number_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE ready_steps (
    step_id bigint NOT NULL,
    class_id integer NOT NULL,
    jobset_id uuid NOT NULL,
    bump bigint DEFAULT 0 NOT NULL,
    priority integer DEFAULT 100 NOT NULL
)
WITH (autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='5000', autovacuum_vacuum_cost_delay='0');

CREATE TABLE remote_builders (
    id uuid DEFAULT fc_uuid_v7() NOT NULL,
    name text NOT NULL,
    ssh_uri text NOT NULL,
    systems text[] DEFAULT '{}'::text[] NOT NULL,
    max_jobs integer DEFAULT 1 NOT NULL,
    speed_factor integer DEFAULT 1 NOT NULL,
    supported_features text[] DEFAULT '{}'::text[] NOT NULL,
    mandatory_features text[] DEFAULT '{}'::text[] NOT NULL,
    enabled boolean DEFAULT true NOT NULL,
    public_host_key text,
    consecutive_failures integer DEFAULT 0 NOT NULL,
    disabled_until timestamp with time zone,
    last_failure timestamp with time zone,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    namespace text DEFAULT 'default'::text NOT NULL,
    ssh_key_secret text,
    ssh_key_secret_key text,
    drain boolean DEFAULT false NOT NULL,
    last_error text,
    last_seen_at timestamp with time zone,
    deleting_at timestamp with time zone,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    pinned_host_key text,
    test_requested_at timestamp with time zone,
    tested_at timestamp with time zone,
    findings jsonb DEFAULT '[]'::jsonb NOT NULL,
    CONSTRAINT remote_builders_max_jobs_check CHECK (((max_jobs >= 1) AND (max_jobs <= 10000))),
    CONSTRAINT remote_builders_name_check CHECK ((name ~ '^[A-Za-z_][A-Za-z0-9_.-]{0,62}$'::text)),
    CONSTRAINT remote_builders_speed_factor_check CHECK (((speed_factor >= 1) AND (speed_factor <= 1000))),
    CONSTRAINT remote_builders_systems_check CHECK ((cardinality(systems) > 0))
);

CREATE TABLE service_heartbeats (
    owner text NOT NULL,
    kind text NOT NULL,
    host text NOT NULL,
    started_at timestamp with time zone DEFAULT now() NOT NULL,
    seen_at timestamp with time zone DEFAULT now() NOT NULL,
    info jsonb DEFAULT '{}'::jsonb NOT NULL
);

CREATE TABLE source_problems (
    source_kind text NOT NULL,
    source_name text NOT NULL,
    nr integer NOT NULL,
    problem jsonb NOT NULL
);

CREATE UNLOGGED TABLE stage_steps (
    drv_path text NOT NULL,
    name text NOT NULL,
    class_id integer NOT NULL,
    blockers integer NOT NULL,
    priority integer NOT NULL,
    timeout_s integer,
    max_silent_s integer,
    is_fixed_output boolean NOT NULL,
    prefer_local boolean NOT NULL,
    build_id uuid
);

CREATE TABLE starred_jobs (
    id uuid DEFAULT fc_uuid_v7() NOT NULL,
    user_id uuid NOT NULL,
    project_id uuid NOT NULL,
    jobset_id uuid,
    job_name text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE step_classes (
    id integer NOT NULL,
    system text NOT NULL,
    features text[] DEFAULT '{}'::text[] NOT NULL
);

ALTER TABLE step_classes ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME step_classes_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE step_edges (
    step_id bigint NOT NULL,
    needs_step_id bigint NOT NULL,
    CONSTRAINT step_edges_check CHECK ((step_id <> needs_step_id))
);

ALTER TABLE steps ALTER COLUMN id ADD GENERATED BY DEFAULT AS IDENTITY (
    SEQUENCE NAME steps_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE task_reports (
    task_id uuid NOT NULL,
    seq integer NOT NULL,
    payload bytea NOT NULL,
    received_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT task_reports_seq_check CHECK ((seq >= 0))
);
ALTER TABLE ONLY task_reports ALTER COLUMN payload SET STORAGE EXTERNAL;

CREATE TABLE tasks (
    id uuid DEFAULT fc_uuid_v7() NOT NULL,
    kind text NOT NULL,
    evaluation_id uuid,
    executor text DEFAULT 'local'::text NOT NULL,
    builder_id uuid,
    owner text NOT NULL,
    attempt integer DEFAULT 1 NOT NULL,
    token_hash bytea,
    state text DEFAULT 'live'::text NOT NULL,
    cancel_requested boolean DEFAULT false NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    ended_at timestamp with time zone,
    target text,
    pod_namespace text,
    pod_name text,
    pod_uid text,
    pod_phase text,
    pod_ending jsonb,
    pod_created_at timestamp with time zone,
    pod_definition jsonb,
    work jsonb,
    credentials_ciphertext bytea,
    fetch_token_hash bytea,
    fetched_at timestamp with time zone,
    work_token_hash bytea,
    begun_at timestamp with time zone,
    heartbeat_at timestamp with time zone,
    agent jsonb,
    checkout jsonb,
    next_report integer DEFAULT 0 NOT NULL,
    next_event bigint DEFAULT 0 NOT NULL,
    told_at timestamp with time zone,
    CONSTRAINT tasks_check CHECK (((kind = 'evaluation'::text) = (evaluation_id IS NOT NULL))),
    CONSTRAINT tasks_kind_check CHECK ((kind = ANY (ARRAY['evaluation'::text, 'steps'::text]))),
    CONSTRAINT tasks_pod_phase_check CHECK ((pod_phase = ANY (ARRAY['Pending'::text, 'Running'::text, 'Succeeded'::text, 'Failed'::text, 'Gone'::text]))),
    CONSTRAINT tasks_state_check CHECK ((state = ANY (ARRAY['live'::text, 'ended'::text, 'lost'::text])))
);

CREATE TABLE user_sessions (
    id uuid DEFAULT fc_uuid_v7() NOT NULL,
    user_id uuid NOT NULL,
    session_token_hash text NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    last_used_at timestamp with time zone
);

CREATE TABLE users (
    id uuid DEFAULT fc_uuid_v7() NOT NULL,
    username text NOT NULL,
    email text,
    full_name text,
    password_hash text,
    user_type text DEFAULT 'local'::character varying NOT NULL,
    role text DEFAULT 'read-only'::character varying NOT NULL,
    enabled boolean DEFAULT true NOT NULL,
    email_verified boolean DEFAULT false NOT NULL,
    public_dashboard boolean DEFAULT false NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    last_login_at timestamp with time zone,
    CONSTRAINT users_role_check CHECK ((role = ANY (ARRAY['admin'::text, 'create-projects'::text, 'restart-jobs'::text, 'cancel-build'::text, 'bump-to-front'::text, 'eval-jobset'::text, 'read-only'::text]))),
    CONSTRAINT users_user_type_check CHECK ((user_type = ANY (ARRAY['local'::text, 'github'::text, 'google'::text, 'ldap'::text, 'oidc'::text])))
);

CREATE TABLE webhook_configs (
    id uuid DEFAULT fc_uuid_v7() NOT NULL,
    project_id uuid,
    forge_type text NOT NULL,
    enabled boolean DEFAULT true NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    config_repository_id uuid,
    secret_name text,
    secret_key text,
    secret_ciphertext bytea,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT webhook_configs_forge_type_check CHECK ((forge_type = ANY (ARRAY[('github'::character varying)::text, ('gitea'::character varying)::text, ('forgejo'::character varying)::text, ('gitlab'::character varying)::text]))),
    CONSTRAINT webhook_configs_one_parent CHECK ((num_nonnulls(project_id, config_repository_id) = 1))
);

CREATE TABLE webhook_deliveries (
    webhook_config_id uuid NOT NULL,
    delivery_id text NOT NULL,
    received_at timestamp with time zone DEFAULT now() NOT NULL
);

ALTER TABLE ONLY api_keys
    ADD CONSTRAINT api_keys_key_hash_key UNIQUE (key_hash);

ALTER TABLE ONLY api_keys
    ADD CONSTRAINT api_keys_pkey PRIMARY KEY (id);

ALTER TABLE ONLY attempts
    ADD CONSTRAINT attempts_pkey PRIMARY KEY (step_id, attempt);

ALTER TABLE ONLY audit_log
    ADD CONSTRAINT audit_log_pkey PRIMARY KEY (id);

ALTER TABLE ONLY build_dependencies
    ADD CONSTRAINT build_dependencies_pkey PRIMARY KEY (build_id, dependency_build_id);

ALTER TABLE ONLY build_metrics
    ADD CONSTRAINT build_metrics_build_id_metric_name_key UNIQUE (build_id, metric_name);

ALTER TABLE ONLY build_metrics
    ADD CONSTRAINT build_metrics_pkey PRIMARY KEY (id);

ALTER TABLE ONLY build_products
    ADD CONSTRAINT build_products_nr_key UNIQUE (build_id, nr);

ALTER TABLE ONLY build_products
    ADD CONSTRAINT build_products_pkey PRIMARY KEY (id);

ALTER TABLE ONLY build_steps
    ADD CONSTRAINT build_steps_build_id_step_number_key UNIQUE (build_id, step_number);

ALTER TABLE ONLY build_steps
    ADD CONSTRAINT build_steps_pkey PRIMARY KEY (id);

ALTER TABLE ONLY builds
    ADD CONSTRAINT builds_evaluation_id_job_name_key UNIQUE (evaluation_id, job_name);

ALTER TABLE ONLY builds
    ADD CONSTRAINT builds_number_key UNIQUE (number);

ALTER TABLE ONLY builds
    ADD CONSTRAINT builds_pkey PRIMARY KEY (id);

ALTER TABLE ONLY cache_nars
    ADD CONSTRAINT cache_nars_pkey PRIMARY KEY (uploaded_by, upload_hash, compression);

ALTER TABLE ONLY cache_path_projects
    ADD CONSTRAINT cache_path_projects_pkey PRIMARY KEY (hash_part, project_id);

ALTER TABLE ONLY cache_paths
    ADD CONSTRAINT cache_paths_pkey PRIMARY KEY (hash_part);

ALTER TABLE ONLY cache_paths
    ADD CONSTRAINT cache_paths_store_path_key UNIQUE (store_path);

ALTER TABLE ONLY channels
    ADD CONSTRAINT channels_pkey PRIMARY KEY (id);

ALTER TABLE ONLY channels
    ADD CONSTRAINT channels_project_id_name_key UNIQUE (project_id, name);

ALTER TABLE ONLY config_repositories
    ADD CONSTRAINT config_repositories_name_key UNIQUE (name);

ALTER TABLE ONLY config_repositories
    ADD CONSTRAINT config_repositories_pkey PRIMARY KEY (id);

ALTER TABLE ONLY constituents
    ADD CONSTRAINT constituents_pkey PRIMARY KEY (build_id, constituent_build_id);

ALTER TABLE ONLY duty_leases
    ADD CONSTRAINT duty_leases_pkey PRIMARY KEY (name);

ALTER TABLE ONLY evaluation_errors
    ADD CONSTRAINT evaluation_errors_pkey PRIMARY KEY (evaluation_id, nr);

ALTER TABLE ONLY evaluation_inputs
    ADD CONSTRAINT evaluation_inputs_pkey PRIMARY KEY (evaluation_id, name);

ALTER TABLE ONLY evaluations
    ADD CONSTRAINT evaluations_number_key UNIQUE (number);

ALTER TABLE ONLY evaluations
    ADD CONSTRAINT evaluations_pkey PRIMARY KEY (id);

ALTER TABLE ONLY failed_paths_cache
    ADD CONSTRAINT failed_paths_cache_pkey PRIMARY KEY (drv_path);

ALTER TABLE ONLY jobset_inputs
    ADD CONSTRAINT jobset_inputs_jobset_id_name_key UNIQUE (jobset_id, name);

ALTER TABLE ONLY jobset_inputs
    ADD CONSTRAINT jobset_inputs_pkey PRIMARY KEY (id);

ALTER TABLE ONLY jobset_usage
    ADD CONSTRAINT jobset_usage_pkey PRIMARY KEY (jobset_id, hour);

ALTER TABLE ONLY jobsets
    ADD CONSTRAINT jobsets_number_key UNIQUE (number);

ALTER TABLE ONLY jobsets
    ADD CONSTRAINT jobsets_pkey PRIMARY KEY (id);

ALTER TABLE ONLY jobsets
    ADD CONSTRAINT jobsets_project_id_name_key UNIQUE (project_id, name);

ALTER TABLE ONLY leases
    ADD CONSTRAINT leases_pkey PRIMARY KEY (step_id);

ALTER TABLE ONLY log_chunks
    ADD CONSTRAINT log_chunks_pkey PRIMARY KEY (step_id, attempt, start_offset);

ALTER TABLE ONLY managed_resources
    ADD CONSTRAINT managed_resources_pkey PRIMARY KEY (id);

ALTER TABLE ONLY managed_resources
    ADD CONSTRAINT managed_resources_source_kind_source_name_kind_namespace_na_key UNIQUE (source_kind, source_name, kind, namespace, name);

ALTER TABLE ONLY notification_configs
    ADD CONSTRAINT notification_configs_name_key UNIQUE (project_id, notification_type, name);

ALTER TABLE ONLY notification_configs
    ADD CONSTRAINT notification_configs_pkey PRIMARY KEY (id);

ALTER TABLE ONLY notification_tasks
    ADD CONSTRAINT notification_tasks_pkey PRIMARY KEY (id);

ALTER TABLE ONLY project_members
    ADD CONSTRAINT project_members_pkey PRIMARY KEY (id);

ALTER TABLE ONLY project_members
    ADD CONSTRAINT project_members_project_id_user_id_key UNIQUE (project_id, user_id);

ALTER TABLE ONLY projects
    ADD CONSTRAINT projects_name_key UNIQUE (name);

ALTER TABLE ONLY projects
    ADD CONSTRAINT projects_number_key UNIQUE (number);

ALTER TABLE ONLY projects
    ADD CONSTRAINT projects_pkey PRIMARY KEY (id);

ALTER TABLE ONLY ready_steps
    ADD CONSTRAINT ready_steps_pkey PRIMARY KEY (step_id);

ALTER TABLE ONLY remote_builders
    ADD CONSTRAINT remote_builders_name_key UNIQUE (name);

ALTER TABLE ONLY remote_builders
    ADD CONSTRAINT remote_builders_pkey PRIMARY KEY (id);

ALTER TABLE ONLY service_heartbeats
    ADD CONSTRAINT service_heartbeats_pkey PRIMARY KEY (owner);

ALTER TABLE ONLY source_problems
    ADD CONSTRAINT source_problems_pkey PRIMARY KEY (source_kind, source_name, nr);

ALTER TABLE ONLY starred_jobs
    ADD CONSTRAINT starred_jobs_pkey PRIMARY KEY (id);

ALTER TABLE ONLY starred_jobs
    ADD CONSTRAINT starred_jobs_user_id_project_id_jobset_id_job_name_key UNIQUE NULLS NOT DISTINCT (user_id, project_id, jobset_id, job_name);

ALTER TABLE ONLY step_classes
    ADD CONSTRAINT step_classes_pkey PRIMARY KEY (id);

ALTER TABLE ONLY step_classes
    ADD CONSTRAINT step_classes_system_features_key UNIQUE (system, features);

ALTER TABLE ONLY step_edges
    ADD CONSTRAINT step_edges_pkey PRIMARY KEY (step_id, needs_step_id);

ALTER TABLE ONLY step_outputs
    ADD CONSTRAINT step_outputs_pkey PRIMARY KEY (step_id, name);

ALTER TABLE ONLY steps
    ADD CONSTRAINT steps_drv_path_key UNIQUE (drv_path);

ALTER TABLE ONLY steps
    ADD CONSTRAINT steps_pkey PRIMARY KEY (id);

ALTER TABLE ONLY task_reports
    ADD CONSTRAINT task_reports_pkey PRIMARY KEY (task_id, seq);

ALTER TABLE ONLY tasks
    ADD CONSTRAINT tasks_pkey PRIMARY KEY (id);

ALTER TABLE ONLY user_sessions
    ADD CONSTRAINT user_sessions_pkey PRIMARY KEY (id);

ALTER TABLE ONLY users
    ADD CONSTRAINT users_email_key UNIQUE (email);

ALTER TABLE ONLY users
    ADD CONSTRAINT users_pkey PRIMARY KEY (id);

ALTER TABLE ONLY users
    ADD CONSTRAINT users_username_key UNIQUE (username);

ALTER TABLE ONLY webhook_configs
    ADD CONSTRAINT webhook_configs_pkey PRIMARY KEY (id);

ALTER TABLE ONLY webhook_configs
    ADD CONSTRAINT webhook_configs_project_id_forge_type_key UNIQUE (project_id, forge_type);

ALTER TABLE ONLY webhook_configs
    ADD CONSTRAINT webhook_configs_repository_forge_key UNIQUE (config_repository_id, forge_type);

ALTER TABLE ONLY webhook_deliveries
    ADD CONSTRAINT webhook_deliveries_pkey PRIMARY KEY (webhook_config_id, delivery_id);

CREATE INDEX attempts_build ON attempts USING btree (build_id) WHERE (build_id IS NOT NULL);

CREATE INDEX attempts_builder ON attempts USING btree (builder_id) WHERE (builder_id IS NOT NULL);

CREATE INDEX attempts_unarchived ON attempts USING btree (ended_at) WHERE ((ended_at IS NOT NULL) AND (log_key IS NULL) AND (log_bytes > 0));

CREATE INDEX build_steps_step ON build_steps USING btree (step_id) WHERE (step_id IS NOT NULL);

CREATE INDEX builds_by_status ON builds USING btree (status, number DESC);

CREATE INDEX builds_by_system ON builds USING btree (system, number DESC);

CREATE INDEX builds_drv ON builds USING btree (drv_path, number DESC);

CREATE INDEX builds_job ON builds USING btree (job_name, number DESC);

CREATE INDEX builds_root_cause ON builds USING btree (root_cause_step_id) WHERE (root_cause_step_id IS NOT NULL);

CREATE INDEX builds_status ON builds USING btree (evaluation_id, status);

CREATE INDEX builds_step ON builds USING btree (step_id) WHERE (step_id IS NOT NULL);

CREATE INDEX builds_unsigned ON builds USING btree (completed_at) WHERE ((NOT signed) AND (status = ANY (ARRAY['succeeded'::text, 'failed_with_output'::text])));

CREATE INDEX cache_path_projects_project ON cache_path_projects USING btree (project_id);

CREATE INDEX cache_paths_file ON cache_paths USING btree (file_hash);

CREATE INDEX cache_paths_nar ON cache_paths USING btree (nar_hash);

CREATE INDEX cache_paths_object ON cache_paths USING btree (object_key);

CREATE INDEX channels_current_evaluation ON channels USING btree (current_evaluation_id) WHERE (current_evaluation_id IS NOT NULL);

CREATE INDEX constituents_constituent ON constituents USING btree (constituent_build_id);

CREATE INDEX evaluations_commit ON evaluations USING btree (commit_hash);

CREATE INDEX evaluations_jobset ON evaluations USING btree (jobset_id, number DESC);

CREATE INDEX evaluations_key ON evaluations USING btree (inputs_hash) WHERE (status = 'completed'::text);

CREATE UNIQUE INDEX evaluations_live ON evaluations USING btree (jobset_id, trust, commit_hash) WHERE ((status = ANY (ARRAY['pending'::text, 'running'::text])) AND (NOT force));

CREATE INDEX evaluations_queue ON evaluations USING btree (evaluation_time, id) WHERE (status = ANY (ARRAY['pending'::text, 'running'::text]));

CREATE INDEX evaluations_reused_from ON evaluations USING btree (reused_from) WHERE (reused_from IS NOT NULL);

CREATE INDEX evaluations_task ON evaluations USING btree (task_id) WHERE (task_id IS NOT NULL);

CREATE INDEX evaluations_unfinished ON evaluations USING btree (jobset_id) WHERE (builds_ended_at IS NULL);

CREATE INDEX failed_paths_cache_build ON failed_paths_cache USING btree (source_build_id) WHERE (source_build_id IS NOT NULL);

CREATE INDEX idx_api_keys_user_id ON api_keys USING btree (user_id);

CREATE INDEX idx_build_deps_dep ON build_dependencies USING btree (dependency_build_id);

CREATE INDEX idx_builds_builder ON builds USING btree (builder_id) WHERE (builder_id IS NOT NULL);

CREATE INDEX idx_channels_jobset ON channels USING btree (jobset_id);

CREATE INDEX idx_evaluations_pr ON evaluations USING btree (jobset_id, pr_number) WHERE (pr_number IS NOT NULL);

CREATE INDEX idx_failed_paths_cache_failed_at ON failed_paths_cache USING btree (failed_at);

CREATE INDEX idx_notification_tasks_created_at ON notification_tasks USING btree (created_at);

CREATE INDEX idx_notification_tasks_status_next_retry ON notification_tasks USING btree (status, next_retry_at) WHERE (status = ANY (ARRAY[('pending'::character varying)::text, ('running'::character varying)::text]));

CREATE INDEX idx_project_members_user_id ON project_members USING btree (user_id);

CREATE INDEX idx_remote_builders_enabled ON remote_builders USING btree (enabled) WHERE (enabled = true);

CREATE INDEX idx_starred_jobs_project_id ON starred_jobs USING btree (project_id);

CREATE INDEX idx_user_sessions_expires ON user_sessions USING btree (expires_at);

CREATE INDEX idx_user_sessions_token ON user_sessions USING btree (session_token_hash);

CREATE INDEX idx_user_sessions_user_id ON user_sessions USING btree (user_id);

CREATE INDEX jobset_inputs_build ON jobset_inputs USING hash (value) WHERE (input_type = 'build'::text);

CREATE INDEX jobsets_due ON jobsets USING btree (next_check_at) WHERE ((next_check_at IS NOT NULL) AND (state <> 'disabled'::text) AND (NOT suspended) AND (deleting_at IS NULL));

CREATE INDEX leases_task ON leases USING btree (task_id);

CREATE UNIQUE INDEX managed_resources_one_owner ON managed_resources USING btree (kind, identity) WHERE owns;

CREATE INDEX managed_resources_pruning ON managed_resources USING btree (pruning_since) WHERE (pruning_since IS NOT NULL);

CREATE INDEX ready_steps_claim ON ready_steps USING btree (class_id, jobset_id, bump DESC, priority DESC, step_id);

CREATE INDEX starred_jobs_jobset ON starred_jobs USING btree (jobset_id) WHERE (jobset_id IS NOT NULL);

CREATE INDEX step_edges_needs ON step_edges USING btree (needs_step_id, step_id);

CREATE INDEX step_outputs_path ON step_outputs USING btree (path);

CREATE INDEX steps_backoff ON steps USING btree (not_before) WHERE (not_before IS NOT NULL);

CREATE INDEX steps_jobset ON steps USING btree (jobset_id);

CREATE INDEX steps_root_cause ON steps USING btree (root_cause_step_id) WHERE (root_cause_step_id IS NOT NULL);

CREATE INDEX steps_unsupported ON steps USING btree (class_id) WHERE (status = 'unsupported_system'::text);

CREATE INDEX tasks_builder ON tasks USING btree (builder_id) WHERE (builder_id IS NOT NULL);

CREATE INDEX tasks_evaluation ON tasks USING btree (evaluation_id) WHERE (evaluation_id IS NOT NULL);

CREATE INDEX tasks_live ON tasks USING btree (expires_at) WHERE (state = 'live'::text);

CREATE UNIQUE INDEX tasks_one_live_evaluation ON tasks USING btree (evaluation_id) WHERE ((state = 'live'::text) AND (evaluation_id IS NOT NULL));

CREATE INDEX tasks_pods ON tasks USING btree (pod_namespace, pod_name) WHERE ((state = 'live'::text) AND (pod_name IS NOT NULL));

CREATE UNIQUE INDEX users_email_lower ON users USING btree (lower(email));

CREATE UNIQUE INDEX users_username_lower ON users USING btree (lower(username));

CREATE INDEX webhook_deliveries_age ON webhook_deliveries USING btree (received_at);

CREATE TRIGGER builds_check_transition BEFORE UPDATE OF status ON builds FOR EACH ROW WHEN ((old.status IS DISTINCT FROM new.status)) EXECUTE FUNCTION fc_check_transition();

CREATE TRIGGER evaluations_check_transition BEFORE UPDATE OF status ON evaluations FOR EACH ROW WHEN ((old.status IS DISTINCT FROM new.status)) EXECUTE FUNCTION fc_check_evaluation_transition();

CREATE TRIGGER steps_check_transition BEFORE UPDATE OF status ON steps FOR EACH ROW WHEN ((old.status IS DISTINCT FROM new.status)) EXECUTE FUNCTION fc_check_transition();

CREATE TRIGGER update_channels_updated_at BEFORE UPDATE ON channels FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();

CREATE TRIGGER update_config_repositories_updated_at BEFORE UPDATE ON config_repositories FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();

CREATE TRIGGER update_jobsets_updated_at BEFORE UPDATE ON jobsets FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();

CREATE TRIGGER update_managed_resources_updated_at BEFORE UPDATE ON managed_resources FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();

CREATE TRIGGER update_projects_updated_at BEFORE UPDATE ON projects FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();

CREATE TRIGGER update_remote_builders_updated_at BEFORE UPDATE ON remote_builders FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();

CREATE TRIGGER update_users_updated_at BEFORE UPDATE ON users FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();

CREATE TRIGGER update_webhook_configs_updated_at BEFORE UPDATE ON webhook_configs FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();

ALTER TABLE ONLY api_keys
    ADD CONSTRAINT api_keys_user_id_fkey FOREIGN KEY (user_id) REFERENCES users(id) ON DELETE CASCADE;

ALTER TABLE ONLY attempts
    ADD CONSTRAINT attempts_build_id_fkey FOREIGN KEY (build_id) REFERENCES builds(id) ON DELETE SET NULL;

ALTER TABLE ONLY attempts
    ADD CONSTRAINT attempts_builder_id_fkey FOREIGN KEY (builder_id) REFERENCES remote_builders(id) ON DELETE SET NULL;

ALTER TABLE ONLY attempts
    ADD CONSTRAINT attempts_step_id_fkey FOREIGN KEY (step_id) REFERENCES steps(id) ON DELETE CASCADE;

ALTER TABLE ONLY build_dependencies
    ADD CONSTRAINT build_dependencies_build_id_fkey FOREIGN KEY (build_id) REFERENCES builds(id) ON DELETE CASCADE;

ALTER TABLE ONLY build_dependencies
    ADD CONSTRAINT build_dependencies_dependency_build_id_fkey FOREIGN KEY (dependency_build_id) REFERENCES builds(id) ON DELETE CASCADE;

ALTER TABLE ONLY build_metrics
    ADD CONSTRAINT build_metrics_build_id_fkey FOREIGN KEY (build_id) REFERENCES builds(id) ON DELETE CASCADE;

ALTER TABLE ONLY build_products
    ADD CONSTRAINT build_products_build_id_fkey FOREIGN KEY (build_id) REFERENCES builds(id) ON DELETE CASCADE;

ALTER TABLE ONLY build_steps
    ADD CONSTRAINT build_steps_build_id_fkey FOREIGN KEY (build_id) REFERENCES builds(id) ON DELETE CASCADE;

ALTER TABLE ONLY build_steps
    ADD CONSTRAINT build_steps_step_fkey FOREIGN KEY (step_id) REFERENCES steps(id) ON DELETE SET NULL;

ALTER TABLE ONLY builds
    ADD CONSTRAINT builds_builder_id_fkey FOREIGN KEY (builder_id) REFERENCES remote_builders(id) ON DELETE SET NULL;

ALTER TABLE ONLY builds
    ADD CONSTRAINT builds_evaluation_id_fkey FOREIGN KEY (evaluation_id) REFERENCES evaluations(id) ON DELETE CASCADE;

ALTER TABLE ONLY builds
    ADD CONSTRAINT builds_root_cause_fkey FOREIGN KEY (root_cause_step_id) REFERENCES steps(id) ON DELETE SET NULL;

ALTER TABLE ONLY builds
    ADD CONSTRAINT builds_step_fkey FOREIGN KEY (step_id) REFERENCES steps(id) ON DELETE SET NULL;

ALTER TABLE ONLY cache_path_projects
    ADD CONSTRAINT cache_path_projects_hash_part_fkey FOREIGN KEY (hash_part) REFERENCES cache_paths(hash_part) ON DELETE CASCADE;

ALTER TABLE ONLY cache_path_projects
    ADD CONSTRAINT cache_path_projects_project_id_fkey FOREIGN KEY (project_id) REFERENCES projects(id) ON DELETE CASCADE;

ALTER TABLE ONLY channels
    ADD CONSTRAINT channels_current_evaluation_id_fkey FOREIGN KEY (current_evaluation_id) REFERENCES evaluations(id) ON DELETE SET NULL;

ALTER TABLE ONLY channels
    ADD CONSTRAINT channels_jobset_id_fkey FOREIGN KEY (jobset_id) REFERENCES jobsets(id) ON DELETE CASCADE;

ALTER TABLE ONLY channels
    ADD CONSTRAINT channels_project_id_fkey FOREIGN KEY (project_id) REFERENCES projects(id) ON DELETE CASCADE;

ALTER TABLE ONLY constituents
    ADD CONSTRAINT constituents_build_id_fkey FOREIGN KEY (build_id) REFERENCES builds(id) ON DELETE CASCADE;

ALTER TABLE ONLY constituents
    ADD CONSTRAINT constituents_constituent_build_id_fkey FOREIGN KEY (constituent_build_id) REFERENCES builds(id) ON DELETE CASCADE;

ALTER TABLE ONLY evaluation_errors
    ADD CONSTRAINT evaluation_errors_evaluation_id_fkey FOREIGN KEY (evaluation_id) REFERENCES evaluations(id) ON DELETE CASCADE;

ALTER TABLE ONLY evaluation_inputs
    ADD CONSTRAINT evaluation_inputs_evaluation_id_fkey FOREIGN KEY (evaluation_id) REFERENCES evaluations(id) ON DELETE CASCADE;

ALTER TABLE ONLY evaluations
    ADD CONSTRAINT evaluations_jobset_id_fkey FOREIGN KEY (jobset_id) REFERENCES jobsets(id) ON DELETE CASCADE;

ALTER TABLE ONLY evaluations
    ADD CONSTRAINT evaluations_reused_from_fkey FOREIGN KEY (reused_from) REFERENCES evaluations(id) ON DELETE SET NULL;

ALTER TABLE ONLY evaluations
    ADD CONSTRAINT evaluations_task_fkey FOREIGN KEY (task_id) REFERENCES tasks(id) ON DELETE SET NULL;

ALTER TABLE ONLY failed_paths_cache
    ADD CONSTRAINT failed_paths_cache_build_fkey FOREIGN KEY (source_build_id) REFERENCES builds(id) ON DELETE SET NULL;

ALTER TABLE ONLY jobset_inputs
    ADD CONSTRAINT jobset_inputs_jobset_id_fkey FOREIGN KEY (jobset_id) REFERENCES jobsets(id) ON DELETE CASCADE;

ALTER TABLE ONLY jobset_usage
    ADD CONSTRAINT jobset_usage_jobset_id_fkey FOREIGN KEY (jobset_id) REFERENCES jobsets(id) ON DELETE CASCADE;

ALTER TABLE ONLY jobsets
    ADD CONSTRAINT jobsets_project_id_fkey FOREIGN KEY (project_id) REFERENCES projects(id) ON DELETE CASCADE;

ALTER TABLE ONLY leases
    ADD CONSTRAINT leases_step_id_fkey FOREIGN KEY (step_id) REFERENCES steps(id) ON DELETE CASCADE;

ALTER TABLE ONLY leases
    ADD CONSTRAINT leases_task_id_fkey FOREIGN KEY (task_id) REFERENCES tasks(id);

ALTER TABLE ONLY log_chunks
    ADD CONSTRAINT log_chunks_step_id_attempt_fkey FOREIGN KEY (step_id, attempt) REFERENCES attempts(step_id, attempt) ON DELETE CASCADE;

ALTER TABLE ONLY notification_configs
    ADD CONSTRAINT notification_configs_project_id_fkey FOREIGN KEY (project_id) REFERENCES projects(id) ON DELETE CASCADE;

ALTER TABLE ONLY project_members
    ADD CONSTRAINT project_members_project_id_fkey FOREIGN KEY (project_id) REFERENCES projects(id) ON DELETE CASCADE;

ALTER TABLE ONLY project_members
    ADD CONSTRAINT project_members_user_id_fkey FOREIGN KEY (user_id) REFERENCES users(id) ON DELETE CASCADE;

ALTER TABLE ONLY ready_steps
    ADD CONSTRAINT ready_steps_step_id_fkey FOREIGN KEY (step_id) REFERENCES steps(id) ON DELETE CASCADE;

ALTER TABLE ONLY starred_jobs
    ADD CONSTRAINT starred_jobs_jobset_id_fkey FOREIGN KEY (jobset_id) REFERENCES jobsets(id) ON DELETE CASCADE;

ALTER TABLE ONLY starred_jobs
    ADD CONSTRAINT starred_jobs_project_id_fkey FOREIGN KEY (project_id) REFERENCES projects(id) ON DELETE CASCADE;

ALTER TABLE ONLY starred_jobs
    ADD CONSTRAINT starred_jobs_user_id_fkey FOREIGN KEY (user_id) REFERENCES users(id) ON DELETE CASCADE;

ALTER TABLE ONLY step_edges
    ADD CONSTRAINT step_edges_needs_step_id_fkey FOREIGN KEY (needs_step_id) REFERENCES steps(id) ON DELETE CASCADE;

ALTER TABLE ONLY step_edges
    ADD CONSTRAINT step_edges_step_id_fkey FOREIGN KEY (step_id) REFERENCES steps(id) ON DELETE CASCADE;

ALTER TABLE ONLY step_outputs
    ADD CONSTRAINT step_outputs_step_id_fkey FOREIGN KEY (step_id) REFERENCES steps(id) ON DELETE CASCADE;

ALTER TABLE ONLY steps
    ADD CONSTRAINT steps_class_id_fkey FOREIGN KEY (class_id) REFERENCES step_classes(id);

ALTER TABLE ONLY steps
    ADD CONSTRAINT steps_jobset_id_fkey FOREIGN KEY (jobset_id) REFERENCES jobsets(id) ON DELETE SET NULL;

ALTER TABLE ONLY steps
    ADD CONSTRAINT steps_root_cause_step_id_fkey FOREIGN KEY (root_cause_step_id) REFERENCES steps(id) ON DELETE SET NULL;

ALTER TABLE ONLY task_reports
    ADD CONSTRAINT task_reports_task_id_fkey FOREIGN KEY (task_id) REFERENCES tasks(id) ON DELETE CASCADE;

ALTER TABLE ONLY tasks
    ADD CONSTRAINT tasks_builder_id_fkey FOREIGN KEY (builder_id) REFERENCES remote_builders(id) ON DELETE SET NULL;

ALTER TABLE ONLY tasks
    ADD CONSTRAINT tasks_evaluation_id_fkey FOREIGN KEY (evaluation_id) REFERENCES evaluations(id) ON DELETE CASCADE;

ALTER TABLE ONLY user_sessions
    ADD CONSTRAINT user_sessions_user_id_fkey FOREIGN KEY (user_id) REFERENCES users(id) ON DELETE CASCADE;

ALTER TABLE ONLY webhook_configs
    ADD CONSTRAINT webhook_configs_config_repository_fkey FOREIGN KEY (config_repository_id) REFERENCES config_repositories(id) ON DELETE CASCADE;

ALTER TABLE ONLY webhook_configs
    ADD CONSTRAINT webhook_configs_project_id_fkey FOREIGN KEY (project_id) REFERENCES projects(id) ON DELETE CASCADE;

ALTER TABLE ONLY webhook_deliveries
    ADD CONSTRAINT webhook_deliveries_webhook_config_id_fkey FOREIGN KEY (webhook_config_id) REFERENCES webhook_configs(id) ON DELETE CASCADE;
