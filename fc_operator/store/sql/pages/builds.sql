-- The largest page stands inside each list as a number, so that the planner knows how little is read
-- and keeps one plan; planning anew would cost more than the page. Rows of lists are made into JSON
-- here, which costs half of decoding them and making it there. Filters that may be absent are written
-- with coalesce: the planner would take `absent OR equal` for nearly always false and begin elsewhere.

-- name: list_newest(all_projects, projects, before, page_size)
-- Builds of all projects, newest first.
SELECT row_to_json(r)::text AS row FROM (
    SELECT b.id, b.number, p.name AS project, j.name AS jobset, e.number AS evaluation, b.job_name,
        b.nix_name, b.system, b.status, b.status_reason, b.cached, b.is_new, b.is_aggregate, b.priority,
        b.keep, b.created_at, b.started_at, b.completed_at
    FROM builds b
    JOIN evaluations e ON e.id = b.evaluation_id
    JOIN jobsets j ON j.id = e.jobset_id
    JOIN projects p ON p.id = j.project_id
    WHERE b.number < :before::bigint
        AND (p.visibility = 'public' OR :all_projects::boolean OR p.id = ANY(:projects::uuid[]))
    ORDER BY b.number DESC
    LIMIT 201
) r
ORDER BY r.number DESC
LIMIT :page_size::int;

-- name: list_of_system(system, all_projects, projects, before, page_size)
-- Builds for one system, newest first; planned for that system, since some are rare.
SELECT row_to_json(r)::text AS row FROM (
    SELECT b.id, b.number, p.name AS project, j.name AS jobset, e.number AS evaluation, b.job_name,
        b.nix_name, b.system, b.status, b.status_reason, b.cached, b.is_new, b.is_aggregate, b.priority,
        b.keep, b.created_at, b.started_at, b.completed_at
    FROM builds b
    JOIN evaluations e ON e.id = b.evaluation_id
    JOIN jobsets j ON j.id = e.jobset_id
    JOIN projects p ON p.id = j.project_id
    WHERE b.system = :system::text AND b.number < :before::bigint
        AND (p.visibility = 'public' OR :all_projects::boolean OR p.id = ANY(:projects::uuid[]))
    ORDER BY b.number DESC
    LIMIT :page_size::int
) r
ORDER BY r.number DESC;

-- name: list_of_statuses(statuses, system, all_projects, projects, before, page_size)
-- Builds with one of some statuses, newest first; the newest of each status, merged.
SELECT row_to_json(r)::text AS row FROM unnest(:statuses::text[]) AS wanted (status)
CROSS JOIN LATERAL (
    SELECT b.id, b.number, p.name AS project, j.name AS jobset, e.number AS evaluation, b.job_name,
        b.nix_name, b.system, b.status, b.status_reason, b.cached, b.is_new, b.is_aggregate, b.priority,
        b.keep, b.created_at, b.started_at, b.completed_at
    FROM builds b
    JOIN evaluations e ON e.id = b.evaluation_id
    JOIN jobsets j ON j.id = e.jobset_id
    JOIN projects p ON p.id = j.project_id
    WHERE b.status = wanted.status AND b.number < :before::bigint
        AND coalesce(b.system = :system::text, :system::text IS NULL)
        AND (p.visibility = 'public' OR :all_projects::boolean OR p.id = ANY(:projects::uuid[]))
    ORDER BY b.number DESC
    LIMIT :page_size::int
) r
ORDER BY r.number DESC
LIMIT :page_size::int;

-- name: list_of_job(job, statuses, system, project, jobset, all_projects, projects, before, page_size)
-- Builds of one job name, newest first.
SELECT row_to_json(r)::text AS row FROM (
    SELECT b.id, b.number, p.name AS project, j.name AS jobset, e.number AS evaluation, b.job_name,
        b.nix_name, b.system, b.status, b.status_reason, b.cached, b.is_new, b.is_aggregate, b.priority,
        b.keep, b.created_at, b.started_at, b.completed_at
    FROM builds b
    JOIN evaluations e ON e.id = b.evaluation_id
    JOIN jobsets j ON j.id = e.jobset_id
    JOIN projects p ON p.id = j.project_id
    WHERE b.job_name = :job::text AND b.number < :before::bigint
        AND coalesce(b.status = ANY(:statuses::text[]), :statuses::text[] IS NULL)
        AND coalesce(b.system = :system::text, :system::text IS NULL)
        AND coalesce(j.project_id = :project::uuid, :project::uuid IS NULL)
        AND coalesce(e.jobset_id = :jobset::uuid, :jobset::uuid IS NULL)
        AND (p.visibility = 'public' OR :all_projects::boolean OR p.id = ANY(:projects::uuid[]))
    ORDER BY b.number DESC
    LIMIT 201
) r
ORDER BY r.number DESC
LIMIT :page_size::int;

-- name: list_of_evaluation(evaluation_id, statuses, system, job, after_job, page_size)
-- Builds of one evaluation by job name.
SELECT row_to_json(r)::text AS row FROM (
    SELECT b.id, b.number, p.name AS project, j.name AS jobset, e.number AS evaluation, b.job_name,
        b.nix_name, b.system, b.status, b.status_reason, b.cached, b.is_new, b.is_aggregate, b.priority,
        b.keep, b.created_at, b.started_at, b.completed_at
    FROM builds b
    JOIN evaluations e ON e.id = b.evaluation_id
    JOIN jobsets j ON j.id = e.jobset_id
    JOIN projects p ON p.id = j.project_id
    WHERE b.evaluation_id = :evaluation_id::uuid
        AND b.job_name > :after_job::text
        AND coalesce(b.status = ANY(:statuses::text[]), :statuses::text[] IS NULL)
        AND coalesce(b.system = :system::text, :system::text IS NULL)
        AND coalesce(b.job_name = :job::text, :job::text IS NULL)
    ORDER BY b.job_name
    LIMIT 201
) r
ORDER BY r.job_name
LIMIT :page_size::int;

-- name: list_of_jobsets(project, jobset, statuses, system, before_evaluation, after_job, page_size)
-- Builds of a project or a jobset: newest evaluation first, in it by job name.
SELECT row_to_json(r)::text AS row FROM (
    SELECT e.id, e.number, e.jobset_id FROM evaluations e
    JOIN jobsets j ON j.id = e.jobset_id
    WHERE j.project_id = :project::uuid
        AND coalesce(e.jobset_id = :jobset::uuid, :jobset::uuid IS NULL)
        AND e.number <= :before_evaluation::bigint
    ORDER BY e.number DESC
) e
JOIN jobsets j ON j.id = e.jobset_id
JOIN projects p ON p.id = j.project_id
CROSS JOIN LATERAL (
    SELECT b.id, b.number, p.name AS project, j.name AS jobset, e.number AS evaluation, b.job_name,
        b.nix_name, b.system, b.status, b.status_reason, b.cached, b.is_new, b.is_aggregate, b.priority,
        b.keep, b.created_at, b.started_at, b.completed_at
    FROM builds b
    WHERE b.evaluation_id = e.id
        AND (e.number < :before_evaluation::bigint OR b.job_name > :after_job::text)
        AND coalesce(b.status = ANY(:statuses::text[]), :statuses::text[] IS NULL)
        AND coalesce(b.system = :system::text, :system::text IS NULL)
    ORDER BY b.job_name
    LIMIT :page_size::int
) r
ORDER BY e.number DESC, r.job_name
LIMIT :page_size::int;

-- name: fetch(number, id, all_projects, projects)^
-- One build: its job, its step and what became of it.
SELECT b.id, b.number, p.name AS project, j.name AS jobset, e.number AS evaluation, b.job_name,
    b.nix_name, b.system, b.status, b.status_reason, b.cached, b.is_new, b.is_aggregate, b.priority,
    b.keep, b.created_at, b.started_at, b.completed_at,
    j.id AS jobset_id, p.id AS project_id, e.id AS evaluation_id, e.commit_hash, b.attr_path,
    b.drv_path, b.description, b.homepage, b.license, b.maintainers, b.is_channel, b.error_message,
    b.build_output_path, b.outputs, b.constituents, b.release_name, b.warnings, b.signed,
    b.log_path, b.retry_count, b.timeout_s, b.max_silent_s, b.bumped_at, b.kept_by,
    b.kept_at, w.name AS builder, b.step_id, s.attempt, a.executor, a.peak_memory_bytes, a.cpu_ms,
    a.log_bytes, a.log_lines,
    CASE WHEN c.id IS NOT NULL THEN jsonb_build_object('step_id', c.id, 'name', c.name,
        'drv_path', c.drv_path, 'status', c.status, 'attempt', c.attempt,
        'error_message', c.error_message) END AS root_cause
FROM builds b
JOIN evaluations e ON e.id = b.evaluation_id
JOIN jobsets j ON j.id = e.jobset_id
JOIN projects p ON p.id = j.project_id
LEFT JOIN remote_builders w ON w.id = b.builder_id
LEFT JOIN steps s ON s.id = b.step_id
LEFT JOIN attempts a ON a.step_id = s.id AND a.attempt = s.attempt
LEFT JOIN steps c ON c.id = b.root_cause_step_id
WHERE (b.number = :number::bigint OR b.id = :id::uuid)
    AND (p.visibility = 'public' OR :all_projects::boolean OR p.id = ANY(:projects::uuid[]));

-- name: find(number, id, all_projects, projects)^
-- Whether the reader sees a build, and of which project it is.
SELECT b.id, b.number, b.job_name, b.status, b.step_id, p.id AS project_id
FROM builds b
JOIN evaluations e ON e.id = b.evaluation_id
JOIN jobsets j ON j.id = e.jobset_id
JOIN projects p ON p.id = j.project_id
WHERE (b.number = :number::bigint OR b.id = :id::uuid)
    AND (p.visibility = 'public' OR :all_projects::boolean OR p.id = ANY(:projects::uuid[]));

-- name: list_steps(build_id, after_number, page_size)
-- Every attempt at the build's own step that the build caused.
SELECT x.step_number, x.command, x.drv_path, x.step_id, x.attempt, x.status, x.exit_code,
    x.error_output AS error, x.started_at, x.completed_at, a.executor, a.builder_name AS builder,
    a.reason, a.signal, a.phases, a.peak_memory_bytes, a.cpu_ms, a.log_bytes, a.log_lines
FROM build_steps x
LEFT JOIN attempts a ON a.step_id = x.step_id AND a.attempt = x.attempt
WHERE x.build_id = :build_id::uuid AND x.step_number > :after_number::int
ORDER BY x.step_number
LIMIT :page_size::int;

-- name: list_products(build_id)
-- What the build offers for download.
SELECT r.nr, r.type, r.subtype, r.name, r.path, r.default_path, r.output, r.is_directory,
    r.file_size AS size_bytes, r.sha256_hash AS sha256, r.content_type
FROM build_products r
WHERE r.build_id = :build_id::uuid
ORDER BY r.nr;

-- name: fetch_product(build_id, nr)^
-- One product.
SELECT r.nr, r.type, r.subtype, r.name, r.path, r.default_path, r.output, r.is_directory,
    r.file_size AS size_bytes, r.sha256_hash AS sha256, r.content_type
FROM build_products r
WHERE r.build_id = :build_id::uuid AND r.nr = :nr::int;

-- name: list_metrics(build_id)
-- The job's own metrics.
SELECT m.metric_name AS name, m.metric_value AS value, m.unit, m.collected_at
FROM build_metrics m
WHERE m.build_id = :build_id::uuid
ORDER BY m.metric_name;

-- name: fetch_summary(build_id)^
-- Our own figures about a build.
SELECT v.duration_seconds::double precision AS duration_seconds, v.output_size_bytes,
    v.peak_memory_bytes, v.nar_size_bytes
FROM build_metrics_summary v
WHERE v.build_id = :build_id::uuid;

-- name: list_outputs(build_id)
-- Outputs of the build's step.
SELECT o.name, o.path, o.nar_hash, o.nar_size AS nar_size_bytes
FROM builds b
JOIN step_outputs o ON o.step_id = b.step_id
WHERE b.id = :build_id::uuid
ORDER BY o.name;

-- name: list_dependencies(build_id, after_job, page_size)
-- Jobs of the same evaluation that this build needs.
SELECT d.id, d.number, d.job_name, d.system, d.status, d.status_reason
FROM build_dependencies x
JOIN builds d ON d.id = x.dependency_build_id
WHERE x.build_id = :build_id::uuid AND d.job_name > :after_job::text
ORDER BY d.job_name
LIMIT :page_size::int;

-- name: list_dependents(build_id, after_job, page_size)
-- Jobs of the same evaluation that need this build.
SELECT d.id, d.number, d.job_name, d.system, d.status, d.status_reason
FROM build_dependencies x
JOIN builds d ON d.id = x.build_id
WHERE x.dependency_build_id = :build_id::uuid AND d.job_name > :after_job::text
ORDER BY d.job_name
LIMIT :page_size::int;

-- name: list_constituents(build_id, after_job, page_size)
-- What an aggregate is made of.
SELECT d.id, d.number, d.job_name, d.system, d.status, d.status_reason
FROM constituents x
JOIN builds d ON d.id = x.constituent_build_id
WHERE x.build_id = :build_id::uuid AND d.job_name > :after_job::text
ORDER BY d.job_name
LIMIT :page_size::int;

-- name: fetch_stats()^
-- All builds, counted.
SELECT v.total_builds, v.completed_builds, v.failed_builds, v.running_builds, v.pending_builds,
    v.avg_duration_seconds
FROM build_stats v;

-- name: fetch_latest(project, jobset, job, system, all_projects, projects)^
-- The newest success of a job.
SELECT b.id, b.number, b.system, b.completed_at
FROM builds b
JOIN evaluations e ON e.id = b.evaluation_id
JOIN jobsets j ON j.id = e.jobset_id
JOIN projects p ON p.id = j.project_id
WHERE b.job_name = :job::text AND b.status = 'succeeded'
    AND (p.name = :project::text) AND (j.name = :jobset::text)
    AND coalesce(b.system = :system::text, :system::text IS NULL)
    AND (p.visibility = 'public' OR :all_projects::boolean OR p.id = ANY(:projects::uuid[]))
ORDER BY b.number DESC
LIMIT 1;

-- name: fetch_newest_ended(project, jobset, job, all_projects, projects)^
-- The newest build of a job that has ended, for its badge.
SELECT b.id, b.number, b.status, b.completed_at
FROM builds b
JOIN evaluations e ON e.id = b.evaluation_id
JOIN jobsets j ON j.id = e.jobset_id
JOIN projects p ON p.id = j.project_id
WHERE b.job_name = :job::text AND b.status NOT IN ('pending', 'running')
    AND (p.name = :project::text) AND (j.name = :jobset::text)
    AND (p.visibility = 'public' OR :all_projects::boolean OR p.id = ANY(:projects::uuid[]))
ORDER BY b.number DESC
LIMIT 1;

-- name: fetch_latest_finished(project, jobset, job, all_projects, projects)^
-- The newest success of a job in an evaluation whose builds have all ended.
SELECT b.id, b.number
FROM builds b
JOIN evaluations e ON e.id = b.evaluation_id
JOIN jobsets j ON j.id = e.jobset_id
JOIN projects p ON p.id = j.project_id
WHERE b.job_name = :job::text AND b.status = 'succeeded' AND e.builds_ended_at IS NOT NULL
    AND p.name = :project::text AND j.name = :jobset::text
    AND (p.visibility = 'public' OR :all_projects::boolean OR p.id = ANY(:projects::uuid[]))
ORDER BY b.number DESC
LIMIT 1;
