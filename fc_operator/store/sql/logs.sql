-- name: append_chunks(step_ids, attempts, task_ids, offsets, chunks)
-- Pieces of the logs of running attempts; of others, and what is there already, nothing.
INSERT INTO log_chunks (step_id, attempt, start_offset, data)
SELECT u.step_id, u.attempt, u.start_offset, u.data
FROM unnest(:step_ids::bigint[], :attempts::int[], :task_ids::uuid[], :offsets::bigint[],
    :chunks::bytea[]) AS u (step_id, attempt, task_id, start_offset, data)
JOIN leases l ON l.step_id = u.step_id AND l.attempt = u.attempt AND l.task_id = u.task_id
ON CONFLICT DO NOTHING
RETURNING step_id;

-- name: list_chunks(step_id, attempt, start, limit)
-- Pieces of one log that reach beyond an offset, in order.
SELECT start_offset, data
FROM log_chunks
WHERE step_id = :step_id AND attempt = :attempt AND start_offset >= coalesce((
    SELECT max(start_offset) FROM log_chunks
    WHERE step_id = :step_id AND attempt = :attempt AND start_offset <= :start
), 0)
ORDER BY start_offset
LIMIT :limit::int;

-- name: list_unarchived(limit)
-- Logs of ended attempts that are not in the object store yet, oldest first.
SELECT step_id, attempt FROM attempts
WHERE ended_at IS NOT NULL AND log_key IS NULL AND log_bytes > 0
ORDER BY ended_at LIMIT :limit::int;

-- name: note_archived(step_id, attempt, log_key, log_lines)!
-- Where the log of an attempt lies now; builds of which it is the last attempt show it.
WITH noted AS (
    UPDATE attempts SET log_key = :log_key, log_lines = :log_lines
    WHERE step_id = :step_id AND attempt = :attempt
    RETURNING step_id, attempt
)
UPDATE builds b SET log_path = :log_key
FROM noted n
JOIN steps s ON s.id = n.step_id AND s.attempt = n.attempt
WHERE b.step_id = s.id AND b.completed_at IS NOT NULL
    AND b.completed_at >= (SELECT claimed_at FROM attempts a
        WHERE a.step_id = n.step_id AND a.attempt = n.attempt);

-- name: delete_chunks(step_id, attempt)!
-- Pieces of a log that is in the object store.
DELETE FROM log_chunks WHERE step_id = :step_id AND attempt = :attempt;
