-- name: list_newest(statuses, all_projects, projects, before, page_size)
-- Evaluations of all projects, newest first.
SELECT e.id, e.number, p.name AS project, j.name AS jobset, e.commit_hash, e.branch, e.subject,
    e.author, e.status, e.status_reason, e.error_kind, e.trigger, e.evaluation_time, e.started_at,
    e.finished_at, e.builds_ended_at, e.jobs, e.jobs_new, e.errors,
    CASE WHEN e.builds_ended_at IS NOT NULL THEN e.build_counts ELSE (
        SELECT jsonb_object_agg(c.status, c.n) FROM (SELECT b.status, count(*) AS n
            FROM builds b WHERE b.evaluation_id = e.id GROUP BY b.status) c) END AS builds
FROM (
    SELECT n.* FROM evaluations n
    JOIN jobsets m ON m.id = n.jobset_id
    JOIN projects o ON o.id = m.project_id
    WHERE n.number < :before::bigint
        AND coalesce(n.status = ANY(:statuses::text[]), :statuses::text[] IS NULL)
        AND (o.visibility = 'public' OR :all_projects::boolean OR o.id = ANY(:projects::uuid[]))
    ORDER BY n.number DESC
    LIMIT 201
) e
JOIN jobsets j ON j.id = e.jobset_id
JOIN projects p ON p.id = j.project_id
ORDER BY e.number DESC
LIMIT :page_size::int;

-- name: list_of_jobset(jobset, statuses, before, page_size)
-- Evaluations of one jobset, newest first.
SELECT e.id, e.number, p.name AS project, j.name AS jobset, e.commit_hash, e.branch, e.subject,
    e.author, e.status, e.status_reason, e.error_kind, e.trigger, e.evaluation_time, e.started_at,
    e.finished_at, e.builds_ended_at, e.jobs, e.jobs_new, e.errors,
    CASE WHEN e.builds_ended_at IS NOT NULL THEN e.build_counts ELSE (
        SELECT jsonb_object_agg(c.status, c.n) FROM (SELECT b.status, count(*) AS n
            FROM builds b WHERE b.evaluation_id = e.id GROUP BY b.status) c) END AS builds
FROM evaluations e
JOIN jobsets j ON j.id = e.jobset_id
JOIN projects p ON p.id = j.project_id
WHERE e.jobset_id = :jobset::uuid AND e.number < :before::bigint
    AND coalesce(e.status = ANY(:statuses::text[]), :statuses::text[] IS NULL)
ORDER BY e.number DESC
LIMIT :page_size::int;

-- name: list_of_project(project, statuses, before, page_size)
-- Evaluations of a project: the newest of each of its jobsets, merged.
SELECT e.id, e.number, p.name AS project, j.name AS jobset, e.commit_hash, e.branch, e.subject,
    e.author, e.status, e.status_reason, e.error_kind, e.trigger, e.evaluation_time, e.started_at,
    e.finished_at, e.builds_ended_at, e.jobs, e.jobs_new, e.errors,
    CASE WHEN e.builds_ended_at IS NOT NULL THEN e.build_counts ELSE (
        SELECT jsonb_object_agg(c.status, c.n) FROM (SELECT b.status, count(*) AS n
            FROM builds b WHERE b.evaluation_id = e.id GROUP BY b.status) c) END AS builds
FROM jobsets j
JOIN projects p ON p.id = j.project_id
CROSS JOIN LATERAL (
    SELECT n.* FROM evaluations n
    WHERE n.jobset_id = j.id AND n.number < :before::bigint
        AND coalesce(n.status = ANY(:statuses::text[]), :statuses::text[] IS NULL)
    ORDER BY n.number DESC
    LIMIT :page_size::int
) e
WHERE j.project_id = :project::uuid
ORDER BY e.number DESC
LIMIT :page_size::int;

-- name: list_of_commit(commit_hash, project, jobset, statuses, all_projects, projects, before, page_size)
-- Evaluations of one commit, newest first.
SELECT e.id, e.number, p.name AS project, j.name AS jobset, e.commit_hash, e.branch, e.subject,
    e.author, e.status, e.status_reason, e.error_kind, e.trigger, e.evaluation_time, e.started_at,
    e.finished_at, e.builds_ended_at, e.jobs, e.jobs_new, e.errors,
    CASE WHEN e.builds_ended_at IS NOT NULL THEN e.build_counts ELSE (
        SELECT jsonb_object_agg(c.status, c.n) FROM (SELECT b.status, count(*) AS n
            FROM builds b WHERE b.evaluation_id = e.id GROUP BY b.status) c) END AS builds
FROM evaluations e
JOIN jobsets j ON j.id = e.jobset_id
JOIN projects p ON p.id = j.project_id
WHERE e.commit_hash = :commit_hash::text AND e.number < :before::bigint
    AND coalesce(j.project_id = :project::uuid, :project::uuid IS NULL)
    AND coalesce(e.jobset_id = :jobset::uuid, :jobset::uuid IS NULL)
    AND coalesce(e.status = ANY(:statuses::text[]), :statuses::text[] IS NULL)
    AND (p.visibility = 'public' OR :all_projects::boolean OR p.id = ANY(:projects::uuid[]))
ORDER BY e.number DESC
LIMIT :page_size::int;

-- name: fetch(number, id, all_projects, projects)^
-- One evaluation.
SELECT e.id, e.number, p.name AS project, j.name AS jobset, e.commit_hash, e.branch, e.subject,
    e.author, e.status, e.status_reason, e.error_kind, e.trigger, e.evaluation_time, e.started_at,
    e.finished_at, e.builds_ended_at, e.jobs, e.jobs_new, e.errors,
    CASE WHEN e.builds_ended_at IS NOT NULL THEN e.build_counts ELSE (
        SELECT jsonb_object_agg(c.status, c.n) FROM (SELECT b.status, count(*) AS n
            FROM builds b WHERE b.evaluation_id = e.id GROUP BY b.status) c) END AS builds,
    j.id AS jobset_id, p.id AS project_id, e.error_message, e.trust, e.force, e.tree_hash,
    e.inputs_hash, e.evaluator, e.evaluator_version, e.checkout_ms, e.evaluation_ms, e.attempt,
    e.cancel_requested, r.number AS reused_from, e.pr_number, e.pr_head_branch, e.pr_base_branch,
    e.pr_action,
    (SELECT o.number FROM evaluations o WHERE o.jobset_id = e.jobset_id AND o.number < e.number
        AND o.status = 'completed' ORDER BY o.number DESC LIMIT 1) AS previous
FROM evaluations e
JOIN jobsets j ON j.id = e.jobset_id
JOIN projects p ON p.id = j.project_id
LEFT JOIN evaluations r ON r.id = e.reused_from
WHERE (e.number = :number::bigint OR e.id = :id::uuid)
    AND (p.visibility = 'public' OR :all_projects::boolean OR p.id = ANY(:projects::uuid[]));

-- name: list_errors(evaluation_id, after_nr, page_size)
-- Attributes that gave no job, in the evaluator's order.
SELECT x.nr, x.job_name AS job, x.attr_path, x.message
FROM evaluation_errors x
WHERE x.evaluation_id = :evaluation_id::uuid AND x.nr > :after_nr::int
ORDER BY x.nr
LIMIT :page_size::int;

-- name: list_inputs(evaluation_id)
-- What each input was resolved to.
SELECT i.name, i.input_type AS type, i.value, i.revision, i.store_path
FROM evaluation_inputs i
WHERE i.evaluation_id = :evaluation_id::uuid
ORDER BY i.name;

-- name: compare(old_id, new_id, after_job, page_size)
-- Jobs whose build differs between two evaluations, by name.
SELECT coalesce(n.job_name, o.job_name) AS job, coalesce(n.system, o.system) AS system,
    o.number AS old_build, o.status AS old_status, n.number AS new_build, n.status AS new_status,
    CASE
        WHEN o.id IS NULL THEN 'new'
        WHEN n.id IS NULL THEN 'removed'
        WHEN n.status IN ('pending', 'running') THEN 'unfinished'
        WHEN n.status IN ('aborted', 'cancelled', 'unsupported_system') THEN 'aborted'
        WHEN n.status = 'succeeded' AND o.status = 'succeeded' THEN 'still_succeeding'
        WHEN n.status = 'succeeded' THEN 'now_succeeding'
        WHEN o.status = 'succeeded' THEN 'now_failing'
        ELSE 'still_failing'
    END AS change,
    o.drv_path IS DISTINCT FROM n.drv_path AS rebuilt
FROM (SELECT * FROM builds WHERE evaluation_id = :old_id::uuid
        AND (:after_job::text IS NULL OR job_name > :after_job::text)
        ORDER BY job_name LIMIT :page_size::int) o
FULL JOIN (SELECT * FROM builds WHERE evaluation_id = :new_id::uuid
        AND (:after_job::text IS NULL OR job_name > :after_job::text)
        ORDER BY job_name LIMIT :page_size::int) n ON n.job_name = o.job_name
ORDER BY 1
LIMIT :page_size::int;

-- name: find_other(jobset, project, before_number, before_time)^
-- The evaluation to compare with: a jobset's newest completed one, or the one before a moment.
SELECT e.number
FROM evaluations e
JOIN jobsets j ON j.id = e.jobset_id
JOIN projects p ON p.id = j.project_id
WHERE p.name = :project::text AND j.name = :jobset::text AND e.status = 'completed'
    AND (:before_number::bigint IS NULL OR e.number < :before_number::bigint)
    AND (:before_time::timestamptz IS NULL OR e.evaluation_time <= :before_time::timestamptz)
ORDER BY e.number DESC
LIMIT 1;

-- name: count_changes(old_id, new_id)
-- How many jobs changed how between two evaluations.
SELECT change, count(*) AS jobs FROM (
    SELECT CASE
        WHEN o.id IS NULL THEN 'new'
        WHEN n.id IS NULL THEN 'removed'
        WHEN n.status IN ('pending', 'running') THEN 'unfinished'
        WHEN n.status IN ('aborted', 'cancelled', 'unsupported_system') THEN 'aborted'
        WHEN n.status = 'succeeded' AND o.status = 'succeeded' THEN 'still_succeeding'
        WHEN n.status = 'succeeded' THEN 'now_succeeding'
        WHEN o.status = 'succeeded' THEN 'now_failing'
        ELSE 'still_failing'
    END AS change
    FROM (SELECT id, job_name, status FROM builds WHERE evaluation_id = :old_id::uuid) o
    FULL JOIN (SELECT id, job_name, status FROM builds WHERE evaluation_id = :new_id::uuid) n
        ON n.job_name = o.job_name
) changes
GROUP BY change;
