-- name: fetch(id, all_projects, projects)^
-- A step, if the reader sees a build that it is for, or of which it is the root cause.
SELECT s.id, s.drv_path, s.name, c.system, c.features, s.status, s.status_reason, s.error_message,
    s.attempt, s.blockers, s.priority, s.infra_failures, s.not_before, s.created_at,
    s.runnable_at, s.started_at, s.finished_at, s.root_cause_step_id AS root_cause
FROM steps s
JOIN step_classes c ON c.id = s.class_id
WHERE s.id = :id::bigint AND (
    :all_projects::boolean
    OR EXISTS (SELECT FROM builds b
        JOIN evaluations e ON e.id = b.evaluation_id
        JOIN jobsets j ON j.id = e.jobset_id
        JOIN projects p ON p.id = j.project_id
        WHERE b.step_id = s.id
            AND (p.visibility = 'public' OR p.id = ANY(:projects::uuid[])))
    OR EXISTS (SELECT FROM attempts a
        JOIN builds b ON b.id = a.build_id
        JOIN evaluations e ON e.id = b.evaluation_id
        JOIN jobsets j ON j.id = e.jobset_id
        JOIN projects p ON p.id = j.project_id
        WHERE a.step_id = s.id
            AND (p.visibility = 'public' OR p.id = ANY(:projects::uuid[]))));

-- name: list_attempts(id, after, page_size)
-- Every try at a step.
SELECT a.attempt, a.executor, a.builder_name AS builder, a.status, a.reason, a.message,
    a.exit_code, a.signal, a.claimed_at, a.started_at, a.ended_at, a.phases, a.peak_memory_bytes,
    a.cpu_ms, a.log_bytes, a.log_lines, b.number AS build
FROM attempts a
LEFT JOIN builds b ON b.id = a.build_id
WHERE a.step_id = :id::bigint AND a.attempt > :after::int
ORDER BY a.attempt
LIMIT :page_size::int;
