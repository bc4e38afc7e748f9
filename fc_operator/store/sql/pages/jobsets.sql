-- name: list_jobsets(project_id, after_name, page_size)
-- Jobsets of a project by name, each with its newest evaluation.
SELECT j.id, j.number, p.name AS project, j.name, j.description, j.nix_expression, j.flake_mode,
    j.branch, j.state, j.suspended, j.check_interval AS check_interval_s, j.scheduling_shares,
    j.deleting_at, j.last_checked_at, j.next_check_at, j.check_reason, j.last_commit, j.last_error,
    j.check_failures, j.created_at, j.updated_at,
    (SELECT jsonb_build_object('id', e.id, 'number', e.number, 'commit_hash', e.commit_hash,
            'status', e.status, 'subject', e.subject, 'evaluation_time', e.evaluation_time,
            'builds_ended_at', e.builds_ended_at,
            'builds', CASE WHEN e.builds_ended_at IS NOT NULL THEN e.build_counts ELSE (
                SELECT jsonb_object_agg(c.status, c.n) FROM (SELECT b.status, count(*) AS n
                    FROM builds b WHERE b.evaluation_id = e.id GROUP BY b.status) c) END)
        FROM evaluations e WHERE e.jobset_id = j.id ORDER BY e.number DESC LIMIT 1
    ) AS latest_evaluation
FROM jobsets j
JOIN projects p ON p.id = j.project_id
WHERE j.project_id = :project_id::uuid
    AND (:after_name::text IS NULL OR j.name > :after_name::text)
ORDER BY j.name
LIMIT :page_size::int;

-- name: fetch(project, project_number, project_id, jobset, number, id, all_projects, projects)^
-- One jobset of a project with who declares it.
SELECT j.id, j.number, p.name AS project, j.name, j.description, j.nix_expression, j.flake_mode,
    j.branch, j.state, j.suspended, j.check_interval AS check_interval_s, j.scheduling_shares,
    j.deleting_at, j.last_checked_at, j.next_check_at, j.check_reason, j.last_commit, j.last_error,
    j.check_failures, j.created_at, j.updated_at,
    (SELECT jsonb_build_object('id', e.id, 'number', e.number, 'commit_hash', e.commit_hash,
            'status', e.status, 'subject', e.subject, 'evaluation_time', e.evaluation_time,
            'builds_ended_at', e.builds_ended_at,
            'builds', CASE WHEN e.builds_ended_at IS NOT NULL THEN e.build_counts ELSE (
                SELECT jsonb_object_agg(c.status, c.n) FROM (SELECT b.status, count(*) AS n
                    FROM builds b WHERE b.evaluation_id = e.id GROUP BY b.status) c) END)
        FROM evaluations e WHERE e.jobset_id = j.id ORDER BY e.number DESC LIMIT 1
    ) AS latest_evaluation,
    j.project_id, p.repository_url, j.keep_nr AS keep_evaluations, j.systems, j.only_build_latest,
    j.timeout_s, j.max_silent_s, j.evaluation_timeout_s, j.allow_import_from_derivation,
    j.generation,
    EXISTS (SELECT FROM active_jobsets a WHERE a.id = j.id) AS active,
    (SELECT jsonb_build_object('id', m.id, 'source_kind', m.source_kind,
            'source_name', m.source_name, 'path', m.path, 'line', m.line, 'revision', m.revision,
            'conditions', m.conditions)
        FROM managed_resources m
        WHERE m.kind = 'Jobset' AND m.identity = p.name || '/' || j.name AND m.owns) AS declared_by
FROM jobsets j
JOIN projects p ON p.id = j.project_id
WHERE (p.name = :project::text OR p.number = :project_number::bigint OR p.id = :project_id::uuid)
    AND (j.name = :jobset::text OR j.number = :number::bigint OR j.id = :id::uuid)
    AND (p.visibility = 'public' OR :all_projects::boolean OR p.id = ANY(:projects::uuid[]))
ORDER BY p.name = :project::text DESC, j.name = :jobset::text DESC
LIMIT 1;

-- name: list_inputs(jobset_id)
-- A jobset's inputs and what the newest completed evaluation took them for.
SELECT i.name, i.input_type AS type, i.value, r.revision, r.store_path
FROM jobset_inputs i
LEFT JOIN evaluation_inputs r ON r.name = i.name AND r.evaluation_id = (
    SELECT e.id FROM evaluations e
    WHERE e.jobset_id = :jobset_id::uuid AND e.status = 'completed'
    ORDER BY e.number DESC LIMIT 1)
WHERE i.jobset_id = :jobset_id::uuid
ORDER BY i.name;

-- name: list_jobs(jobset_id, after_job, page_size)
-- Jobs of a jobset's newest completed evaluation by name, each with its build there.
SELECT b.job_name AS job, b.id AS build_id, b.number AS build, b.system, b.status, b.nix_name,
    b.description, b.is_aggregate, b.completed_at, e.number AS evaluation
FROM builds b
JOIN evaluations e ON e.id = b.evaluation_id
WHERE b.evaluation_id = (SELECT n.id FROM evaluations n
        WHERE n.jobset_id = :jobset_id::uuid AND n.status = 'completed'
        ORDER BY n.number DESC LIMIT 1)
    AND (:after_job::text IS NULL OR b.job_name > :after_job::text)
ORDER BY b.job_name
LIMIT :page_size::int;

-- name: fetch_errors(jobset_id)^
-- What is wrong with a jobset: its source, its newest evaluation, single jobs of it.
SELECT j.last_error AS source_error, j.last_checked_at, j.check_failures,
    e.id AS evaluation_id, e.number AS evaluation, e.status AS evaluation_status, e.error_kind,
    e.status_reason, e.error_message AS evaluation_error,
    coalesce((SELECT jsonb_agg(jsonb_build_object('job', x.job_name,
            'attr_path', to_jsonb(x.attr_path), 'message', x.message) ORDER BY x.nr)
        FROM (SELECT * FROM evaluation_errors WHERE evaluation_id = e.id
            ORDER BY nr LIMIT 200) x), '[]') AS jobs
FROM jobsets j
LEFT JOIN LATERAL (SELECT * FROM evaluations n
    WHERE n.jobset_id = j.id AND n.status NOT IN ('pending', 'running')
    ORDER BY n.number DESC LIMIT 1) e ON true
WHERE j.id = :jobset_id::uuid;
