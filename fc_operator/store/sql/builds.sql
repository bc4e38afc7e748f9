-- name: lock_evaluations(evaluation_ids)!
-- Evaluations whose builds have ended, so that of two last builds one sees the other.
SELECT id FROM evaluations WHERE id = ANY (:evaluation_ids::uuid[]) ORDER BY id FOR NO KEY UPDATE;

-- name: settle_evaluations(evaluation_ids)
-- Evaluations that have ended with all their builds, and how many ended how.
UPDATE evaluations e
SET builds_ended_at = now(),
    build_counts = coalesce((
        SELECT jsonb_object_agg(c.status, c.n)
        FROM (SELECT status, count(*) AS n FROM builds WHERE evaluation_id = e.id GROUP BY status) c
    ), '{}')
WHERE e.id = ANY (:evaluation_ids::uuid[]) AND e.builds_ended_at IS NULL
    AND e.status NOT IN ('pending', 'running')
    AND NOT EXISTS (
        SELECT FROM builds b WHERE b.evaluation_id = e.id AND b.status IN ('pending', 'running')
    )
RETURNING e.id, e.jobset_id;

-- name: promote_channels(evaluation_ids)
-- Channels move to an evaluation of which every job was built well, and never backwards.
UPDATE channels c
SET current_evaluation_id = e.id, promoted_at = now()
FROM (
    SELECT DISTINCT ON (e.jobset_id) e.id, e.jobset_id, e.number
    FROM evaluations e
    WHERE e.id = ANY (:evaluation_ids::uuid[]) AND e.status = 'completed' AND e.errors = 0
        AND e.pr_number IS NULL
        AND EXISTS (SELECT FROM builds b WHERE b.evaluation_id = e.id)
        AND NOT EXISTS (
            SELECT FROM builds b WHERE b.evaluation_id = e.id AND b.status <> 'succeeded'
        )
    ORDER BY e.jobset_id, e.number DESC
) e
WHERE c.jobset_id = e.jobset_id AND NOT EXISTS (
    SELECT FROM evaluations p WHERE p.id = c.current_evaluation_id AND p.number >= e.number
)
RETURNING c.id;

-- name: end_builds(step_ids, statuses, reasons, messages, cached, outputs, output_paths, release_names, warnings)
-- Builds follow their steps to the end.
UPDATE builds b
SET status = u.status, status_reason = u.reason, error_message = nullif(u.message, ''),
    completed_at = now(), root_cause_step_id = NULL, cached = u.cached,
    outputs = coalesce(u.outputs::jsonb, b.outputs),
    build_output_path = coalesce(u.output_path, b.build_output_path),
    release_name = coalesce(u.release_name, b.release_name),
    warnings = ARRAY(SELECT jsonb_array_elements_text(u.warnings::jsonb))
FROM unnest(:step_ids::bigint[], :statuses::text[], :reasons::text[], :messages::text[],
    :cached::boolean[], :outputs::text[], :output_paths::text[], :release_names::text[],
    :warnings::text[])
    AS u (step_id, status, reason, message, cached, outputs, output_path, release_name, warnings)
WHERE b.step_id = u.step_id AND b.status IN ('pending', 'running')
RETURNING b.id, b.evaluation_id, b.step_id;

-- name: delete_results(build_ids)!
-- What earlier runs of builds left behind, before the new run's comes.
WITH products AS (
    DELETE FROM build_products WHERE build_id = ANY (:build_ids::uuid[])
)
DELETE FROM build_metrics WHERE build_id = ANY (:build_ids::uuid[]);

-- name: list_by_id(build_ids)
-- Some builds, as a change needs them.
SELECT b.id, b.evaluation_id, b.status, b.step_id, b.drv_path, b.system, b.nix_name, e.jobset_id
FROM builds b
JOIN evaluations e ON e.id = b.evaluation_id
WHERE b.id = ANY (:build_ids::uuid[])
ORDER BY b.id;

-- name: list_of_evaluation(evaluation_id, statuses)
-- Builds of an evaluation in some statuses.
SELECT id FROM builds
WHERE evaluation_id = :evaluation_id AND status = ANY (:statuses::text[])
ORDER BY id;

-- name: list_superseded(evaluation_id)
-- Live builds of older evaluations of the same stream, where only the latest counts.
SELECT b.id
FROM evaluations n
JOIN jobsets j ON j.id = n.jobset_id AND j.only_build_latest
JOIN evaluations o ON o.jobset_id = n.jobset_id AND o.number < n.number
    AND o.builds_ended_at IS NULL AND o.branch IS NOT DISTINCT FROM n.branch
    AND o.pr_number IS NOT DISTINCT FROM n.pr_number
JOIN builds b ON b.evaluation_id = o.id AND b.status IN ('pending', 'running')
WHERE n.id = :evaluation_id
ORDER BY b.id;

-- name: supersede_evaluations(evaluation_id)
-- Older evaluations of the same stream that still run, where only the latest counts.
UPDATE evaluations o SET cancel_requested = true
FROM evaluations n
JOIN jobsets j ON j.id = n.jobset_id AND j.only_build_latest
WHERE n.id = :evaluation_id AND o.jobset_id = n.jobset_id AND o.number < n.number
    AND o.status IN ('pending', 'running') AND NOT o.cancel_requested
    AND o.branch IS NOT DISTINCT FROM n.branch AND o.pr_number IS NOT DISTINCT FROM n.pr_number
RETURNING o.id;

-- name: cancel_builds(build_ids, reason, message)
-- Live builds end as cancelled.
UPDATE builds b
SET status = 'cancelled', status_reason = :reason, error_message = :message, completed_at = now()
FROM (
    SELECT id FROM builds
    WHERE id = ANY (:build_ids::uuid[]) AND status IN ('pending', 'running')
    ORDER BY id FOR NO KEY UPDATE
) l
WHERE b.id = l.id
RETURNING b.id, b.evaluation_id, b.step_id;

-- name: restart_builds(build_ids)
-- Ended builds that are asked for again; their history and earlier logs stay.
UPDATE builds b
SET status = 'pending', status_reason = '', error_message = NULL, root_cause_step_id = NULL,
    started_at = NULL, completed_at = NULL, retry_count = 0, cached = false, log_path = NULL
FROM (
    SELECT id FROM builds
    WHERE id = ANY (:build_ids::uuid[]) AND status NOT IN ('pending', 'running')
    ORDER BY id FOR NO KEY UPDATE
) l
WHERE b.id = l.id
RETURNING b.id, b.evaluation_id, b.step_id;

-- name: take_back_dependents(step_ids)
-- Builds that failed only because something that they need did; their steps are pending again.
UPDATE builds b
SET status = 'pending', status_reason = '', error_message = NULL, root_cause_step_id = NULL,
    started_at = NULL, completed_at = NULL
FROM (
    SELECT id FROM builds
    WHERE step_id = ANY (:step_ids::bigint[]) AND status = 'dependency_failed'
    ORDER BY id FOR NO KEY UPDATE
) l
WHERE b.id = l.id
RETURNING b.id, b.evaluation_id;

-- name: reopen_evaluations(evaluation_ids)!
-- Something of these evaluations is going to run again.
UPDATE evaluations SET builds_ended_at = NULL, build_counts = NULL
WHERE id IN (
    SELECT id FROM evaluations WHERE id = ANY (:evaluation_ids::uuid[]) AND builds_ended_at IS NOT NULL
    ORDER BY id FOR NO KEY UPDATE
);

-- name: show_running(build_ids)!
-- Builds that came to a step that runs already.
UPDATE builds b SET status = 'running', started_at = s.started_at
FROM steps s
WHERE b.id = ANY (:build_ids::uuid[]) AND s.id = b.step_id AND s.status = 'running'
    AND b.status = 'pending';

-- name: set_step(build_id, step_id)!
-- A build that had been found without a step gets one.
UPDATE builds SET step_id = :step_id WHERE id = :build_id;

-- name: bump_builds(build_ids)
-- Live builds go to the front.
UPDATE builds SET bumped_at = now()
WHERE id = ANY (:build_ids::uuid[]) AND status IN ('pending', 'running')
RETURNING id, evaluation_id, step_id;

-- name: keep_build(build_id, keep, actor)
-- Pin a build's outputs, or let them go.
UPDATE builds
SET keep = :keep, kept_by = CASE WHEN :keep THEN :actor::text END,
    kept_at = CASE WHEN :keep THEN now() END
WHERE id = :build_id AND keep <> :keep
RETURNING id, evaluation_id;

-- name: restart_of_steps(step_ids)
-- Builds of steps that are pending again though nobody asked for the builds themselves.
UPDATE builds b
SET status = 'pending', status_reason = '', error_message = NULL, root_cause_step_id = NULL,
    started_at = NULL, completed_at = NULL
FROM (
    SELECT id FROM builds
    WHERE step_id = ANY (:step_ids::bigint[])
        AND status IN ('dependency_failed', 'unsupported_system')
    ORDER BY id FOR NO KEY UPDATE
) l
WHERE b.id = l.id
RETURNING b.id, b.evaluation_id, b.step_id;
