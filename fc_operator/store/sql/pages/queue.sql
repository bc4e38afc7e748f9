-- name: list_running(all_projects, projects, before, page_size)
-- Builds that run, newest first.
SELECT b.id, b.number, p.name AS project, j.name AS jobset, e.number AS evaluation, b.job_name,
    b.system, b.status, b.priority, b.bumped_at, b.created_at, b.started_at, b.step_id,
    'Running' AS waits_for, s.blockers, s.not_before, s.runnable_at, l.owner AS runs_on
FROM builds b
JOIN evaluations e ON e.id = b.evaluation_id
JOIN jobsets j ON j.id = e.jobset_id
JOIN projects p ON p.id = j.project_id
LEFT JOIN steps s ON s.id = b.step_id
LEFT JOIN leases l ON l.step_id = s.id
WHERE b.status = 'running' AND b.number < :before::bigint
    AND (p.visibility = 'public' OR :all_projects::boolean OR p.id = ANY(:projects::uuid[]))
ORDER BY b.number DESC
LIMIT :page_size::int;

-- name: list_pending(all_projects, projects, after, page_size)
-- Builds that wait, oldest first, and for what.
SELECT b.id, b.number, p.name AS project, j.name AS jobset, e.number AS evaluation, b.job_name,
    b.system, b.status, b.priority, b.bumped_at, b.created_at, b.started_at, b.step_id,
    CASE WHEN s.blockers > 0 THEN 'Dependencies'
        WHEN s.not_before IS NOT NULL THEN 'Backoff'
        ELSE 'Builder' END AS waits_for,
    s.blockers, s.not_before, s.runnable_at, NULL::text AS runs_on
FROM builds b
JOIN evaluations e ON e.id = b.evaluation_id
JOIN jobsets j ON j.id = e.jobset_id
JOIN projects p ON p.id = j.project_id
LEFT JOIN steps s ON s.id = b.step_id
WHERE b.status = 'pending' AND b.number > :after::bigint
    AND (p.visibility = 'public' OR :all_projects::boolean OR p.id = ANY(:projects::uuid[]))
ORDER BY b.number
LIMIT :page_size::int;

-- name: list_classes()
-- Ready and running steps by what they need, from the queue's own small tables.
SELECT c.system, c.features, coalesce(r.ready, 0) AS ready, coalesce(l.running, 0) AS running,
    r.oldest_runnable_at
FROM step_classes c
LEFT JOIN (SELECT q.class_id, count(*) AS ready, min(s.runnable_at) AS oldest_runnable_at
    FROM ready_steps q JOIN steps s ON s.id = q.step_id GROUP BY q.class_id) r ON r.class_id = c.id
LEFT JOIN (SELECT s.class_id, count(*) AS running
    FROM leases x JOIN steps s ON s.id = x.step_id GROUP BY s.class_id) l ON l.class_id = c.id
WHERE r.ready IS NOT NULL OR l.running IS NOT NULL
ORDER BY c.system, c.features;

-- name: fetch_counts()^
-- What waits and runs in all.
SELECT (SELECT count(*) FROM builds WHERE status = 'pending') AS pending_builds,
    (SELECT count(*) FROM builds WHERE status = 'running') AS running_builds,
    (SELECT count(*) FROM evaluations WHERE status = 'pending') AS pending_evaluations,
    (SELECT count(*) FROM evaluations WHERE status = 'running') AS running_evaluations,
    (SELECT count(*) FROM steps WHERE not_before IS NOT NULL) AS steps_in_backoff;
