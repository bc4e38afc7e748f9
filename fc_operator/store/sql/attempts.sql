-- name: start_attempts(step_ids, attempts, task_ids)!
-- The executor has begun with these.
UPDATE attempts a SET started_at = coalesce(a.started_at, now())
FROM unnest(:step_ids::bigint[], :attempts::int[], :task_ids::uuid[])
    AS u (step_id, attempt, task_id)
WHERE a.step_id = u.step_id AND a.attempt = u.attempt AND a.task_id = u.task_id
    AND a.ended_at IS NULL;

-- name: end_attempts(step_ids, attempts, statuses, reasons, messages, exit_codes, signals, peaks, cpus_ms, log_bytes, log_lines, phases)!
-- How tries ended.
UPDATE attempts a
SET ended_at = now(), status = u.status, reason = u.reason, message = nullif(u.message, ''),
    exit_code = u.exit_code, signal = u.signal, peak_memory_bytes = u.peak, cpu_ms = u.cpu_ms,
    log_bytes = u.log_bytes, log_lines = u.log_lines, phases = u.phases::jsonb
FROM unnest(:step_ids::bigint[], :attempts::int[], :statuses::text[], :reasons::text[],
    :messages::text[], :exit_codes::int[], :signals::int[], :peaks::bigint[], :cpus_ms::bigint[],
    :log_bytes::bigint[], :log_lines::bigint[], :phases::text[])
    AS u (step_id, attempt, status, reason, message, exit_code, signal, peak, cpu_ms, log_bytes,
        log_lines, phases)
WHERE a.step_id = u.step_id AND a.attempt = u.attempt;

-- name: lose_attempts(step_ids, attempts)!
-- Tries whose lease ran out; of their logs there is what had come.
UPDATE attempts a
SET ended_at = now(), status = 'lost', reason = 'LeaseLost',
    log_bytes = coalesce(c.size, 0)
FROM unnest(:step_ids::bigint[], :attempts::int[]) AS u (step_id, attempt)
LEFT JOIN LATERAL (
    SELECT max(start_offset + length(data)) AS size FROM log_chunks
    WHERE step_id = u.step_id AND attempt = u.attempt
) c ON true
WHERE a.step_id = u.step_id AND a.attempt = u.attempt;

-- name: lock_builds(step_ids)!
-- Builds that these steps' ends will touch: those that show them and those that caused the tries.
SELECT b.id FROM builds b
WHERE b.step_id = ANY (:step_ids::bigint[]) AND b.status IN ('pending', 'running')
    OR b.id IN (
        SELECT a.build_id FROM attempts a JOIN steps s ON s.id = a.step_id AND s.attempt = a.attempt
        WHERE a.step_id = ANY (:step_ids::bigint[])
    )
ORDER BY b.id
FOR NO KEY UPDATE;

-- name: add_build_steps(step_ids, attempts)!
-- Each try becomes a row of the build that caused it.
INSERT INTO build_steps (build_id, step_number, command, error_output, started_at, completed_at,
    exit_code, step_id, attempt, drv_path, status)
SELECT a.build_id,
    coalesce((SELECT max(x.step_number) FROM build_steps x WHERE x.build_id = a.build_id), 0)
        + row_number() OVER (PARTITION BY a.build_id ORDER BY a.claimed_at, a.step_id),
    'nix-store --realise ' || s.drv_path, a.message, coalesce(a.started_at, a.claimed_at),
    a.ended_at, a.exit_code, a.step_id, a.attempt, s.drv_path, a.status
FROM unnest(:step_ids::bigint[], :attempts::int[]) AS u (step_id, attempt)
JOIN attempts a ON a.step_id = u.step_id AND a.attempt = u.attempt
JOIN steps s ON s.id = a.step_id
WHERE a.build_id IS NOT NULL;
