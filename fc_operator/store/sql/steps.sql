-- name: fail_dependents(step_ids)
-- A failure travels to all that needs it, however far: one statement, the root cause linked.
WITH RECURSIVE down AS (
    SELECT e.step_id, coalesce(f.root_cause_step_id, f.id) AS root
    FROM steps f
    JOIN step_edges e ON e.needs_step_id = f.id
    JOIN steps s ON s.id = e.step_id AND s.status = 'pending' AND NOT s.check_mode
    WHERE f.id = ANY (:step_ids::bigint[])
    UNION
    SELECT e.step_id, d.root
    FROM down d
    JOIN step_edges e ON e.needs_step_id = d.step_id
    JOIN steps s ON s.id = e.step_id AND s.status = 'pending' AND NOT s.check_mode
), locked AS (
    SELECT s.id, d.root
    FROM (SELECT step_id, min(root) AS root FROM down GROUP BY step_id) d
    JOIN steps s ON s.id = d.step_id
    ORDER BY s.id
    FOR UPDATE OF s
), failed AS (
    UPDATE steps s
    SET status = 'dependency_failed', root_cause_step_id = l.root,
        status_reason = 'DependencyFailed',
        error_message = 'needs ' || r.name || ', which ended as ' || r.status,
        finished_at = now(), runnable_at = NULL, not_before = NULL
    FROM locked l
    JOIN steps r ON r.id = l.root
    WHERE s.id = l.id AND s.status = 'pending'
    RETURNING s.id, s.root_cause_step_id, s.error_message
), unqueued AS (
    DELETE FROM ready_steps q USING failed f WHERE q.step_id = f.id
)
UPDATE builds b
SET status = 'dependency_failed', root_cause_step_id = f.root_cause_step_id,
    status_reason = 'DependencyFailed', error_message = f.error_message, completed_at = now()
FROM failed f
WHERE b.step_id = f.id AND b.status IN ('pending', 'running')
RETURNING b.id, b.evaluation_id;
