-- 0002: mends the traps of the seed (ARCHITECTURE.md has the table of its columns) and gives every
-- declared noun what its manifest says. Statuses, uniqueness and limits become constraints.

-- Time-ordered ids keep indexes dense; clients make their own (RFC 9562), this is for SQL.
CREATE FUNCTION fc_uuid_v7() RETURNS uuid LANGUAGE sql VOLATILE PARALLEL SAFE AS $$
    SELECT encode(
        set_bit(set_bit(
            overlay(uuid_send(gen_random_uuid()) PLACING
                substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3)
                FROM 1 FOR 6),
            52, 1), 53, 1), 'hex')::uuid
$$;

-- No NOTIFY per row: it takes a database-wide lock at commit and carries no id.
DROP TRIGGER trg_builds_insert_notify ON builds;
DROP TRIGGER trg_builds_status_notify ON builds;
DROP TRIGGER trg_jobsets_insert_notify ON jobsets;
DROP TRIGGER trg_jobsets_update_notify ON jobsets;
DROP TRIGGER trg_jobsets_delete_notify ON jobsets;
DROP FUNCTION notify_builds_changed();
DROP FUNCTION notify_jobsets_changed();

-- Views come back corrected at the end.
DROP VIEW active_jobsets;
DROP VIEW build_stats;
DROP VIEW build_metrics_summary;

-- Indexes that repeat a UNIQUE or serve no query.
DROP INDEX idx_projects_name, idx_projects_created_at, idx_users_username, idx_users_email,
    idx_users_role, idx_users_enabled, idx_jobsets_project_id, idx_jobsets_enabled,
    idx_jobsets_name, idx_jobsets_state, idx_jobsets_last_checked_at, idx_api_keys_key_hash,
    idx_evaluations_jobset_id, idx_evaluations_commit_hash, idx_evaluations_status,
    idx_evaluations_evaluation_time, idx_builds_evaluation_id, idx_builds_status,
    idx_builds_job_name, idx_builds_started_at, idx_builds_completed_at, idx_builds_priority,
    idx_builds_notification_pending, idx_builds_drv_path, idx_builds_system,
    idx_builds_pending_priority, idx_builds_drv_completed, idx_build_products_build_id,
    idx_build_products_name, idx_build_products_path_prefix, idx_build_steps_build_id,
    idx_build_steps_started_at, idx_build_deps_build, idx_webhook_configs_project,
    idx_notification_configs_project, idx_jobset_inputs_jobset, idx_channels_project,
    idx_starred_jobs_user_id, idx_project_members_project_id, idx_build_metrics_build_id,
    idx_build_metrics_collected_at, idx_build_metrics_name, idx_evaluations_inputs_hash;

-- projects -----------------------------------------------------------------------------------
ALTER TABLE projects
    ALTER COLUMN id SET DEFAULT fc_uuid_v7(),
    ALTER COLUMN name TYPE TEXT,
    ADD CONSTRAINT projects_name_check CHECK (name ~ '^[A-Za-z_][A-Za-z0-9_-]{0,62}$'),
    ADD CONSTRAINT projects_repository_url_check
        CHECK (repository_url !~* '^(ext::|file:)' AND left(repository_url, 1) <> '-'),
    ADD COLUMN number BIGINT GENERATED ALWAYS AS IDENTITY UNIQUE,
    ADD COLUMN display_name TEXT NOT NULL DEFAULT '',
    ADD COLUMN homepage TEXT NOT NULL DEFAULT '',
    ADD COLUMN owner TEXT NOT NULL DEFAULT '',
    ADD COLUMN visibility TEXT NOT NULL DEFAULT 'public' CHECK (visibility IN ('public', 'private')),
    ADD COLUMN namespace TEXT NOT NULL DEFAULT 'default',
    ADD COLUMN credentials_secret TEXT,
    ADD COLUMN deletion_policy TEXT NOT NULL DEFAULT 'retain'
        CHECK (deletion_policy IN ('retain', 'delete')),
    ADD COLUMN suspended BOOLEAN NOT NULL DEFAULT false,
    -- Set when its manifest is gone: nothing is scheduled any more; history stays or goes by policy.
    ADD COLUMN deleting_at TIMESTAMPTZ;

-- users --------------------------------------------------------------------------------------
ALTER TABLE users
    ALTER COLUMN id SET DEFAULT fc_uuid_v7(),
    ALTER COLUMN username TYPE TEXT,
    ALTER COLUMN email TYPE TEXT,
    ALTER COLUMN email DROP NOT NULL,
    ALTER COLUMN full_name TYPE TEXT,
    ALTER COLUMN password_hash TYPE TEXT,
    ALTER COLUMN user_type TYPE TEXT,
    ALTER COLUMN role TYPE TEXT,
    ADD CONSTRAINT users_user_type_check CHECK (user_type IN ('local', 'github', 'google', 'ldap', 'oidc')),
    ADD CONSTRAINT users_role_check CHECK (role IN ('admin', 'create-projects', 'restart-jobs',
        'cancel-build', 'bump-to-front', 'eval-jobset', 'read-only'));
CREATE UNIQUE INDEX users_username_lower ON users (lower(username));
CREATE UNIQUE INDEX users_email_lower ON users (lower(email));

-- remote_builders ----------------------------------------------------------------------------
-- What could never be chosen stays so, in values that the constraints know.
UPDATE remote_builders SET systems = '{builtin}', enabled = false WHERE cardinality(systems) = 0;
UPDATE remote_builders SET max_jobs = 1, enabled = false WHERE max_jobs < 1;
UPDATE remote_builders SET speed_factor = 1 WHERE speed_factor < 1;
ALTER TABLE remote_builders
    ALTER COLUMN id SET DEFAULT fc_uuid_v7(),
    ALTER COLUMN name TYPE TEXT,
    ADD CONSTRAINT remote_builders_name_check CHECK (name ~ '^[A-Za-z_][A-Za-z0-9_.-]{0,62}$'),
    ADD CONSTRAINT remote_builders_systems_check CHECK (cardinality(systems) > 0),
    ADD CONSTRAINT remote_builders_max_jobs_check CHECK (max_jobs BETWEEN 1 AND 10000),
    ADD CONSTRAINT remote_builders_speed_factor_check CHECK (speed_factor BETWEEN 1 AND 1000),
    -- A path on one host; a reference by name serves both doors.
    DROP COLUMN ssh_key_file,
    ADD COLUMN namespace TEXT NOT NULL DEFAULT 'default',
    ADD COLUMN ssh_key_secret TEXT,
    ADD COLUMN ssh_key_secret_key TEXT,
    ADD COLUMN drain BOOLEAN NOT NULL DEFAULT false,
    ADD COLUMN last_error TEXT,
    ADD COLUMN last_seen_at TIMESTAMPTZ,
    ADD COLUMN deleting_at TIMESTAMPTZ,
    ADD COLUMN updated_at TIMESTAMPTZ NOT NULL DEFAULT now();

-- jobsets ------------------------------------------------------------------------------------
UPDATE jobsets SET state = 'disabled' WHERE NOT enabled OR scheduling_shares < 1;
UPDATE jobsets SET scheduling_shares = greatest(scheduling_shares, 1), keep_nr = greatest(keep_nr, 0),
    check_interval = greatest(check_interval, 0)
    WHERE scheduling_shares < 1 OR keep_nr < 0 OR check_interval < 0;
ALTER TABLE jobsets
    ALTER COLUMN id SET DEFAULT fc_uuid_v7(),
    ALTER COLUMN name TYPE TEXT,
    ALTER COLUMN branch TYPE TEXT,
    ALTER COLUMN state TYPE TEXT,
    -- Two truths; `state` alone says it.
    DROP COLUMN enabled,
    ADD CONSTRAINT jobsets_name_check CHECK (name ~ '^[A-Za-z_][A-Za-z0-9_.-]{0,62}$'),
    ADD CONSTRAINT jobsets_check_interval_check CHECK (check_interval >= 0),
    ADD CONSTRAINT jobsets_scheduling_shares_check CHECK (scheduling_shares BETWEEN 1 AND 1000000),
    ADD CONSTRAINT jobsets_keep_nr_check CHECK (keep_nr >= 0),
    ADD COLUMN number BIGINT GENERATED ALWAYS AS IDENTITY UNIQUE,
    ADD COLUMN description TEXT NOT NULL DEFAULT '',
    ADD COLUMN systems TEXT[] NOT NULL DEFAULT '{}',
    ADD COLUMN only_build_latest BOOLEAN NOT NULL DEFAULT false,
    ADD COLUMN timeout_s INTEGER CHECK (timeout_s > 0),
    ADD COLUMN max_silent_s INTEGER CHECK (max_silent_s > 0),
    ADD COLUMN evaluation_timeout_s INTEGER CHECK (evaluation_timeout_s > 0),
    ADD COLUMN allow_import_from_derivation BOOLEAN NOT NULL DEFAULT false,
    ADD COLUMN suspended BOOLEAN NOT NULL DEFAULT false,
    ADD COLUMN deleting_at TIMESTAMPTZ,
    -- Grows with every change of the declaration; a one_shot fires once per generation.
    ADD COLUMN generation BIGINT NOT NULL DEFAULT 1,
    ADD COLUMN shot_generation BIGINT NOT NULL DEFAULT 0,
    -- Why and when the next look at the source is due; NULL is never by itself.
    ADD COLUMN next_check_at TIMESTAMPTZ DEFAULT now(),
    ADD COLUMN check_reason TEXT NOT NULL DEFAULT 'declared'
        CHECK (check_reason IN ('declared', 'interval', 'webhook', 'request', 'input')),
    ADD COLUMN check_lease_owner TEXT,
    ADD COLUMN check_lease_until TIMESTAMPTZ,
    -- What was asked for by hand: a commit (or none) and whether equal inputs evaluate again.
    ADD COLUMN requested_commit TEXT,
    ADD COLUMN requested_force BOOLEAN NOT NULL DEFAULT false,
    ADD COLUMN last_commit TEXT,
    ADD COLUMN last_error TEXT,
    ADD COLUMN check_failures INTEGER NOT NULL DEFAULT 0;
CREATE INDEX jobsets_due ON jobsets (next_check_at)
    WHERE next_check_at IS NOT NULL AND state <> 'disabled' AND NOT suspended AND deleting_at IS NULL;

-- api_keys -----------------------------------------------------------------------------------
ALTER TABLE api_keys
    ALTER COLUMN id SET DEFAULT fc_uuid_v7(),
    ALTER COLUMN name TYPE TEXT,
    ALTER COLUMN key_hash TYPE TEXT,
    ALTER COLUMN role TYPE TEXT,
    ADD COLUMN prefix TEXT NOT NULL DEFAULT '',
    ADD COLUMN expires_at TIMESTAMPTZ,
    ADD COLUMN revoked_at TIMESTAMPTZ,
    -- A key must not outlive its owner.
    DROP CONSTRAINT api_keys_user_id_fkey,
    ADD CONSTRAINT api_keys_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE;

-- evaluations --------------------------------------------------------------------------------
ALTER TABLE evaluations
    ALTER COLUMN id SET DEFAULT fc_uuid_v7(),
    -- SHA-256 repositories have 64 digits.
    ALTER COLUMN commit_hash TYPE TEXT,
    ALTER COLUMN inputs_hash TYPE TEXT,
    DROP CONSTRAINT evaluations_jobset_id_commit_hash_key,
    DROP CONSTRAINT evaluations_status_check,
    ADD CONSTRAINT evaluations_status_check CHECK (status IN
        ('pending', 'running', 'completed', 'failed', 'cancelled', 'timed_out')),
    ADD CONSTRAINT evaluations_commit_hash_check CHECK (commit_hash ~ '^([0-9a-f]{40}|[0-9a-f]{64})$'),
    ADD COLUMN number BIGINT GENERATED ALWAYS AS IDENTITY UNIQUE,
    ADD COLUMN trigger TEXT NOT NULL DEFAULT 'interval'
        CHECK (trigger IN ('declared', 'interval', 'webhook', 'request', 'input')),
    ADD COLUMN trust TEXT NOT NULL DEFAULT 'trusted' CHECK (trust IN ('trusted', 'unreviewed')),
    ADD COLUMN force BOOLEAN NOT NULL DEFAULT false,
    ADD COLUMN branch TEXT,
    ADD COLUMN tree_hash TEXT,
    ADD COLUMN subject TEXT NOT NULL DEFAULT '',
    ADD COLUMN author TEXT NOT NULL DEFAULT '',
    ADD COLUMN evaluator TEXT,
    ADD COLUMN evaluator_version TEXT,
    -- The evaluation whose rows were taken over because every input was equal.
    ADD COLUMN reused_from UUID REFERENCES evaluations (id) ON DELETE SET NULL,
    ADD COLUMN status_reason TEXT NOT NULL DEFAULT '',
    ADD COLUMN error_kind TEXT CHECK (error_kind IN ('fetch', 'evaluation', 'limit', 'internal')),
    ADD COLUMN started_at TIMESTAMPTZ,
    -- When the evaluator ended; builds may still run then.
    ADD COLUMN finished_at TIMESTAMPTZ,
    ADD COLUMN checkout_ms INTEGER,
    ADD COLUMN evaluation_ms INTEGER,
    ADD COLUMN jobs INTEGER NOT NULL DEFAULT 0,
    ADD COLUMN jobs_new INTEGER NOT NULL DEFAULT 0,
    ADD COLUMN errors INTEGER NOT NULL DEFAULT 0,
    -- When the last build ended, and how many ended how: {"succeeded": 3, ...}.
    ADD COLUMN builds_ended_at TIMESTAMPTZ,
    ADD COLUMN build_counts JSONB,
    -- The fence: only this task's writes count. Its lease is in `tasks`.
    ADD COLUMN task_id UUID,
    ADD COLUMN attempt INTEGER NOT NULL DEFAULT 0,
    ADD COLUMN cancel_requested BOOLEAN NOT NULL DEFAULT false;
CREATE UNIQUE INDEX evaluations_live ON evaluations (jobset_id, trust, commit_hash)
    WHERE status IN ('pending', 'running') AND NOT force;
CREATE INDEX evaluations_jobset ON evaluations (jobset_id, number DESC);
CREATE INDEX evaluations_queue ON evaluations (evaluation_time, id) WHERE status IN ('pending', 'running');
CREATE INDEX evaluations_unfinished ON evaluations (jobset_id) WHERE builds_ended_at IS NULL;
CREATE INDEX evaluations_key ON evaluations (inputs_hash) WHERE status = 'completed';
CREATE INDEX evaluations_commit ON evaluations (commit_hash);
CREATE INDEX evaluations_reused_from ON evaluations (reused_from) WHERE reused_from IS NOT NULL;
CREATE INDEX evaluations_task ON evaluations (task_id) WHERE task_id IS NOT NULL;

-- builds -------------------------------------------------------------------------------------
ALTER TABLE builds
    ALTER COLUMN id SET DEFAULT fc_uuid_v7(),
    ALTER COLUMN job_name TYPE TEXT,
    ALTER COLUMN system TYPE TEXT,
    DROP COLUMN log_url,
    -- `notification_tasks`, written in the transaction of the change, is the outbox.
    DROP COLUMN notification_pending_since,
    -- How often infrastructure may fail is a setting; a copy per build would lie when it changes.
    DROP COLUMN max_retries,
    ALTER COLUMN priority SET DEFAULT 100,
    DROP CONSTRAINT builds_builder_id_fkey,
    ADD CONSTRAINT builds_builder_id_fkey FOREIGN KEY (builder_id)
        REFERENCES remote_builders (id) ON DELETE SET NULL,
    ADD COLUMN number BIGINT GENERATED ALWAYS AS IDENTITY,
    ADD COLUMN attr_path TEXT[] NOT NULL DEFAULT '{}',
    ADD COLUMN nix_name TEXT NOT NULL DEFAULT '',
    ADD COLUMN description TEXT NOT NULL DEFAULT '',
    ADD COLUMN homepage TEXT NOT NULL DEFAULT '',
    ADD COLUMN license TEXT NOT NULL DEFAULT '',
    ADD COLUMN maintainers TEXT NOT NULL DEFAULT '',
    ADD COLUMN timeout_s INTEGER,
    ADD COLUMN max_silent_s INTEGER,
    ADD COLUMN is_channel BOOLEAN NOT NULL DEFAULT false,
    -- The job's output differs from that of the evaluation before.
    ADD COLUMN is_new BOOLEAN NOT NULL DEFAULT true,
    -- Its outputs were there already; nothing was built for it.
    ADD COLUMN cached BOOLEAN NOT NULL DEFAULT false,
    ADD COLUMN status_reason TEXT NOT NULL DEFAULT '',
    ADD COLUMN step_id BIGINT,
    ADD COLUMN root_cause_step_id BIGINT,
    ADD COLUMN release_name TEXT,
    ADD COLUMN warnings TEXT[] NOT NULL DEFAULT '{}',
    ADD COLUMN bumped_at TIMESTAMPTZ,
    ADD COLUMN kept_by TEXT,
    ADD COLUMN kept_at TIMESTAMPTZ;
ALTER TABLE builds ADD CONSTRAINT builds_number_key UNIQUE (number);
CREATE INDEX builds_step ON builds (step_id) WHERE step_id IS NOT NULL;
CREATE INDEX builds_root_cause ON builds (root_cause_step_id) WHERE root_cause_step_id IS NOT NULL;
CREATE INDEX builds_status ON builds (evaluation_id, status);
CREATE INDEX builds_job ON builds (job_name, number DESC);
CREATE INDEX builds_drv ON builds (drv_path, number DESC);
-- Lists by status or system walk these in the order of their pages.
CREATE INDEX builds_by_status ON builds (status, number DESC);
CREATE INDEX builds_by_system ON builds (system, number DESC);

-- build_products -----------------------------------------------------------------------------
-- The seed kept a NAR hash and a NAR size in these two.
UPDATE build_products SET sha256_hash = NULL, file_size = NULL
    WHERE is_directory OR sha256_hash !~ '^[0-9a-f]{64}$';
ALTER TABLE build_products
    ALTER COLUMN id SET DEFAULT fc_uuid_v7(),
    ALTER COLUMN name TYPE TEXT,
    ALTER COLUMN sha256_hash TYPE TEXT,
    ALTER COLUMN content_type TYPE TEXT,
    -- Roots are derived from what is kept, not remembered per product.
    DROP COLUMN gc_root_path,
    ADD COLUMN nr INTEGER NOT NULL DEFAULT 1,
    ADD COLUMN type TEXT NOT NULL DEFAULT 'nix-build',
    ADD COLUMN subtype TEXT NOT NULL DEFAULT '',
    ADD COLUMN default_path TEXT NOT NULL DEFAULT '',
    ADD COLUMN output TEXT NOT NULL DEFAULT 'out',
    ADD CONSTRAINT build_products_sha256_check CHECK (sha256_hash ~ '^[0-9a-f]{64}$');
UPDATE build_products p SET nr = numbered.nr FROM (
    SELECT id, row_number() OVER (PARTITION BY build_id ORDER BY created_at, id) AS nr
    FROM build_products) numbered
    WHERE numbered.id = p.id AND numbered.nr > 1;
ALTER TABLE build_products
    ADD CONSTRAINT build_products_nr_key UNIQUE (build_id, nr),
    -- Its build says when.
    DROP COLUMN created_at;

-- build_steps: one row per attempt at the build's own step, written for the build that caused it.
-- The text of the attempt is its log.
ALTER TABLE build_steps
    ALTER COLUMN id SET DEFAULT fc_uuid_v7(),
    DROP COLUMN output,
    ADD COLUMN step_id BIGINT,
    ADD COLUMN attempt INTEGER,
    ADD COLUMN drv_path TEXT,
    ADD COLUMN status TEXT;
CREATE INDEX build_steps_step ON build_steps (step_id) WHERE step_id IS NOT NULL;

-- build_dependencies: the pair is the row; a key of its own costs as much as the edge.
ALTER TABLE build_dependencies
    DROP COLUMN id,
    DROP CONSTRAINT build_dependencies_build_id_dependency_build_id_key,
    ADD PRIMARY KEY (build_id, dependency_build_id);

-- webhook_configs: of a project or of a config repository; an HMAC needs the secret itself, so it
-- is a reference, and the value is stored encrypted for the server.
ALTER TABLE webhook_configs
    ALTER COLUMN id SET DEFAULT fc_uuid_v7(),
    ALTER COLUMN project_id DROP NOT NULL,
    ALTER COLUMN forge_type TYPE TEXT,
    DROP COLUMN secret_hash,
    ADD COLUMN config_repository_id UUID,
    ADD COLUMN secret_name TEXT,
    ADD COLUMN secret_key TEXT,
    ADD COLUMN secret_ciphertext BYTEA,
    ADD COLUMN updated_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    ADD CONSTRAINT webhook_configs_one_parent CHECK (num_nonnulls(project_id, config_repository_id) = 1),
    ADD CONSTRAINT webhook_configs_repository_forge_key UNIQUE (config_repository_id, forge_type);

-- notification_configs: named targets, several of a type; one enum with the outbox.
ALTER TABLE notification_configs
    ALTER COLUMN id SET DEFAULT fc_uuid_v7(),
    ALTER COLUMN notification_type TYPE TEXT,
    ADD COLUMN name TEXT NOT NULL DEFAULT '',
    DROP CONSTRAINT notification_configs_project_id_notification_type_key,
    ADD CONSTRAINT notification_configs_name_key UNIQUE (project_id, notification_type, name),
    DROP CONSTRAINT notification_configs_notification_type_check,
    ADD CONSTRAINT notification_configs_notification_type_check CHECK (notification_type IN
        ('github_status', 'gitea_status', 'forgejo_status', 'gitlab_status', 'webhook', 'email', 'slack'));

ALTER TABLE notification_tasks
    ALTER COLUMN id SET DEFAULT fc_uuid_v7(),
    ALTER COLUMN notification_type TYPE TEXT,
    ALTER COLUMN status TYPE TEXT,
    DROP CONSTRAINT notification_tasks_notification_type_check,
    ADD CONSTRAINT notification_tasks_notification_type_check CHECK (notification_type IN
        ('github_status', 'gitea_status', 'forgejo_status', 'gitlab_status', 'webhook', 'email', 'slack')),
    ADD COLUMN lease_owner TEXT,
    ADD COLUMN lease_until TIMESTAMPTZ;

ALTER TABLE jobset_inputs
    ALTER COLUMN id SET DEFAULT fc_uuid_v7(),
    ALTER COLUMN name TYPE TEXT,
    ALTER COLUMN input_type TYPE TEXT,
    -- Its jobset says when.
    DROP COLUMN created_at,
    ADD CONSTRAINT jobset_inputs_value_check CHECK (input_type <> 'git'
        OR value !~* '^(ext::|file:)' AND left(value, 1) <> '-');
-- Which jobsets a new success of a job wakes; a hash, for values may be long.
CREATE INDEX jobset_inputs_build ON jobset_inputs USING hash (value) WHERE input_type = 'build';

ALTER TABLE channels
    ALTER COLUMN id SET DEFAULT fc_uuid_v7(),
    ALTER COLUMN name TYPE TEXT,
    DROP CONSTRAINT channels_current_evaluation_id_fkey,
    ADD CONSTRAINT channels_current_evaluation_id_fkey FOREIGN KEY (current_evaluation_id)
        REFERENCES evaluations (id) ON DELETE SET NULL,
    ADD COLUMN promoted_at TIMESTAMPTZ;
CREATE INDEX channels_current_evaluation ON channels (current_evaluation_id)
    WHERE current_evaluation_id IS NOT NULL;

-- A NULL jobset no longer lets the same star in twice.
DELETE FROM starred_jobs a USING starred_jobs b
    WHERE a.jobset_id IS NULL AND b.jobset_id IS NULL AND a.id > b.id
        AND (a.user_id, a.project_id, a.job_name) = (b.user_id, b.project_id, b.job_name);
ALTER TABLE starred_jobs
    ALTER COLUMN id SET DEFAULT fc_uuid_v7(),
    ALTER COLUMN job_name TYPE TEXT,
    DROP CONSTRAINT starred_jobs_user_id_project_id_jobset_id_job_name_key,
    ADD CONSTRAINT starred_jobs_user_id_project_id_jobset_id_job_name_key
        UNIQUE NULLS NOT DISTINCT (user_id, project_id, jobset_id, job_name);
CREATE INDEX starred_jobs_jobset ON starred_jobs (jobset_id) WHERE jobset_id IS NOT NULL;

ALTER TABLE user_sessions
    ALTER COLUMN id SET DEFAULT fc_uuid_v7(),
    ALTER COLUMN session_token_hash TYPE TEXT;

ALTER TABLE project_members
    ALTER COLUMN id SET DEFAULT fc_uuid_v7(),
    ALTER COLUMN role TYPE TEXT,
    ADD CONSTRAINT project_members_role_check CHECK (role IN ('member', 'maintainer', 'admin'));

-- build_metrics: the job's own metrics; ours are columns of attempts and outputs.
ALTER TABLE build_metrics
    ALTER COLUMN id SET DEFAULT fc_uuid_v7(),
    ALTER COLUMN metric_name TYPE TEXT,
    ALTER COLUMN unit TYPE TEXT,
    ALTER COLUMN unit SET DEFAULT '',
    ADD CONSTRAINT build_metrics_name_check CHECK (metric_name ~ '^[A-Za-z0-9._-]+$'),
    ADD CONSTRAINT build_metrics_unit_check CHECK (unit ~ '^[A-Za-z0-9._%-]*$');

-- failed_paths_cache: real failures only, each with an end that is tested when it is read. Which
-- build saw it is a reference now, and goes with that build.
UPDATE failed_paths_cache f SET source_build_id = NULL
    WHERE NOT EXISTS (SELECT FROM builds b WHERE b.id = f.source_build_id);
DELETE FROM failed_paths_cache
    WHERE failure_status NOT IN ('failed', 'log_limit_exceeded', 'nar_size_limit_exceeded');
ALTER TABLE failed_paths_cache
    ADD COLUMN expires_at TIMESTAMPTZ NOT NULL DEFAULT now() + interval '1 day',
    ADD COLUMN step_id BIGINT,
    ADD COLUMN attempt INTEGER,
    ADD CONSTRAINT failed_paths_cache_build_fkey FOREIGN KEY (source_build_id)
        REFERENCES builds (id) ON DELETE SET NULL,
    ADD CONSTRAINT failed_paths_cache_status_check CHECK (failure_status IN
        ('failed', 'log_limit_exceeded', 'nar_size_limit_exceeded'));
CREATE INDEX failed_paths_cache_build ON failed_paths_cache (source_build_id)
    WHERE source_build_id IS NOT NULL;

-- Every mutable table moves its updated_at.
CREATE TRIGGER update_channels_updated_at BEFORE UPDATE ON channels
    FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();
CREATE TRIGGER update_remote_builders_updated_at BEFORE UPDATE ON remote_builders
    FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();
CREATE TRIGGER update_webhook_configs_updated_at BEFORE UPDATE ON webhook_configs
    FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();
