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
), shown AS (
    UPDATE builds b
    SET status = 'dependency_failed', root_cause_step_id = f.root_cause_step_id,
        status_reason = 'DependencyFailed', error_message = f.error_message, completed_at = now()
    FROM failed f
    WHERE b.step_id = f.id AND b.status IN ('pending', 'running')
    RETURNING b.evaluation_id
)
SELECT DISTINCT evaluation_id, NULL::bigint AS needs_step_id FROM shown
UNION ALL
-- What the failed ones waited for besides; somebody else may want it.
SELECT DISTINCT NULL::uuid, e.needs_step_id
FROM failed f
JOIN step_edges e ON e.step_id = f.id
JOIN steps n ON n.id = e.needs_step_id AND n.status = 'pending';

-- name: lock(step_ids)!
-- Some steps, in the one order of all.
SELECT id FROM steps WHERE id = ANY (:step_ids::bigint[]) ORDER BY id FOR UPDATE;

-- name: lock_around(step_ids, failing_ids)!
-- Ending steps and all that their ends will touch, in the one order of all.
WITH RECURSIVE down AS (
    SELECT e.step_id FROM step_edges e WHERE e.needs_step_id = ANY (:failing_ids::bigint[])
    UNION
    SELECT e.step_id
    FROM down d
    JOIN step_edges e ON e.needs_step_id = d.step_id
    JOIN steps s ON s.id = e.step_id AND s.status = 'pending'
)
SELECT s.id FROM steps s
WHERE s.id = ANY (:step_ids::bigint[])
    OR s.id IN (SELECT step_id FROM step_edges WHERE needs_step_id = ANY (:step_ids::bigint[]))
    OR s.id IN (SELECT step_id FROM down)
ORDER BY s.id
FOR UPDATE;

-- name: list_held(step_ids, attempts, task_ids)
-- Which of these attempts are still held: by their task, and as the newest of their step.
SELECT s.id, s.attempt, l.task_id, s.infra_failures, s.free_losses, s.check_mode, s.jobset_id,
    l.cancel_requested, l.expires_at < now() AS is_expired,
    EXISTS (
        SELECT FROM builds b WHERE b.step_id = s.id AND b.status IN ('pending', 'running')
    ) OR EXISTS (
        SELECT FROM step_edges e JOIN steps d ON d.id = e.step_id
        WHERE e.needs_step_id = s.id AND d.status IN ('pending', 'running')
    ) AS is_wanted,
    extract(epoch FROM now() - a.claimed_at)::float8 AS held_s
FROM unnest(:step_ids::bigint[], :attempts::int[], :task_ids::uuid[])
    AS u (step_id, attempt, task_id)
JOIN leases l ON l.step_id = u.step_id AND l.attempt = u.attempt AND l.task_id = u.task_id
JOIN steps s ON s.id = u.step_id AND s.attempt = u.attempt AND s.status = 'running'
JOIN attempts a ON a.step_id = u.step_id AND a.attempt = u.attempt;

-- name: delete_leases(step_ids)!
-- These attempts are over.
DELETE FROM leases WHERE step_id = ANY (:step_ids::bigint[]);

-- name: end_tasks(task_ids)!
-- Tasks of which nothing runs any more.
UPDATE tasks t
SET state = 'ended', ended_at = now()
WHERE t.id = ANY (:task_ids::uuid[]) AND t.state = 'live'
    AND NOT EXISTS (SELECT FROM leases l WHERE l.task_id = t.id);

-- name: end_steps(step_ids, statuses, reasons, messages)!
-- Steps have ended; a check that came to nothing leaves the first outputs valid.
UPDATE steps s
SET status = u.status, status_reason = u.reason, error_message = nullif(u.message, ''),
    finished_at = now(), not_before = NULL, root_cause_step_id = NULL,
    check_mode = s.check_mode AND NOT fc_outputs_valid(u.status, false)
FROM unnest(:step_ids::bigint[], :statuses::text[], :reasons::text[], :messages::text[])
    AS u (step_id, status, reason, message)
WHERE s.id = u.step_id;

-- name: retry_steps(step_ids, delays_s, infra_failures, free_losses, reasons, messages)
-- Steps are tried again, at once or after a delay; the ready ones are queued.
WITH pending AS (
    UPDATE steps s
    SET status = 'pending', infra_failures = u.infra_failures, free_losses = u.free_losses,
        status_reason = u.reason, error_message = nullif(u.message, ''), started_at = NULL,
        runnable_at = now(),
        not_before = CASE WHEN u.delay_s > 0 THEN now() + make_interval(secs => u.delay_s) END
    FROM unnest(:step_ids::bigint[], :delays_s::float8[], :infra_failures::int[],
        :free_losses::int[], :reasons::text[], :messages::text[])
        AS u (step_id, delay_s, infra_failures, free_losses, reason, message)
    WHERE s.id = u.step_id
    RETURNING s.*
), shown AS (
    UPDATE builds b
    SET status = 'pending', started_at = NULL, retry_count = p.infra_failures
    FROM pending p
    WHERE b.step_id = p.id AND b.status = 'running'
    RETURNING b.evaluation_id
), queued AS (
    INSERT INTO ready_steps (step_id, class_id, jobset_id, bump, priority)
    SELECT id, class_id, coalesce(jobset_id, '00000000-0000-0000-0000-000000000000'), bump,
        priority
    FROM pending WHERE not_before IS NULL AND (blockers = 0 OR check_mode)
    ON CONFLICT DO NOTHING
)
SELECT DISTINCT evaluation_id FROM shown;

-- name: queue_due()
-- Backoffs that are over.
WITH due AS (
    SELECT id FROM steps WHERE not_before <= now() AND status = 'pending'
    ORDER BY id FOR UPDATE SKIP LOCKED
), woken AS (
    UPDATE steps s SET not_before = NULL, runnable_at = now()
    FROM due d WHERE s.id = d.id
    RETURNING s.*
)
INSERT INTO ready_steps (step_id, class_id, jobset_id, bump, priority)
SELECT id, class_id, coalesce(jobset_id, '00000000-0000-0000-0000-000000000000'), bump, priority
FROM woken WHERE blockers = 0 OR check_mode
ON CONFLICT DO NOTHING
RETURNING step_id;

-- name: unblock(step_ids)
-- Steps have ended well: who needs them has fewer blockers, and who has none left is queued.
WITH freed AS (
    UPDATE steps s
    SET blockers = s.blockers - d.n,
        runnable_at = CASE WHEN s.blockers = d.n THEN now() END
    FROM (
        SELECT step_id, count(*)::int AS n FROM step_edges
        WHERE needs_step_id = ANY (:step_ids::bigint[]) GROUP BY step_id
    ) d
    WHERE s.id = d.step_id AND s.status = 'pending' AND NOT s.check_mode
    RETURNING s.*
)
INSERT INTO ready_steps (step_id, class_id, jobset_id, bump, priority)
SELECT id, class_id, coalesce(jobset_id, '00000000-0000-0000-0000-000000000000'), bump, priority
FROM freed WHERE blockers = 0
RETURNING step_id;

-- name: set_outputs(step_ids, names, paths, nar_hashes, nar_sizes)!
-- What steps made.
INSERT INTO step_outputs (step_id, name, path, nar_hash, nar_size)
SELECT * FROM unnest(:step_ids::bigint[], :names::text[], :paths::text[], :nar_hashes::text[],
    :nar_sizes::bigint[])
ON CONFLICT (step_id, name) DO UPDATE
SET path = excluded.path, nar_hash = excluded.nar_hash, nar_size = excluded.nar_size;

-- name: remember_failures(step_ids, ttl_s)!
-- Real failures of derivations: whoever wants them soon gets the same answer without a build.
INSERT INTO failed_paths_cache (drv_path, source_build_id, failure_status, failed_at, expires_at,
    step_id, attempt)
SELECT s.drv_path, a.build_id, s.status, now(), now() + make_interval(secs => :ttl_s::float8), s.id,
    s.attempt
FROM steps s
LEFT JOIN attempts a ON a.step_id = s.id AND a.attempt = s.attempt
WHERE s.id = ANY (:step_ids::bigint[])
ON CONFLICT (drv_path) DO UPDATE
SET source_build_id = excluded.source_build_id, failure_status = excluded.failure_status,
    failed_at = excluded.failed_at, expires_at = excluded.expires_at, step_id = excluded.step_id,
    attempt = excluded.attempt;

-- name: add_usage(jobset_ids, seconds)!
-- What steps of jobsets cost, for their fair share.
INSERT INTO jobset_usage (jobset_id, hour, seconds)
SELECT j.id, date_trunc('hour', now()), sum(u.seconds)
FROM unnest(:jobset_ids::uuid[], :seconds::float8[]) AS u (jobset_id, seconds)
JOIN jobsets j ON j.id = u.jobset_id
GROUP BY j.id
ORDER BY j.id
ON CONFLICT (jobset_id, hour) DO UPDATE SET seconds = jobset_usage.seconds + excluded.seconds;

-- name: list_unwanted(step_ids)
-- Which live steps no live build wants any more, neither by itself nor by what needs them.
SELECT s.id, s.status
FROM steps s
WHERE s.id = ANY (:step_ids::bigint[]) AND s.status IN ('pending', 'running')
    AND NOT EXISTS (
        SELECT FROM builds b WHERE b.step_id = s.id AND b.status IN ('pending', 'running')
    )
    AND NOT EXISTS (
        SELECT FROM step_edges e JOIN steps d ON d.id = e.step_id
        WHERE e.needs_step_id = s.id AND d.status IN ('pending', 'running')
    )
ORDER BY s.id
FOR UPDATE OF s;

-- name: cancel_steps(step_ids, reason, message)
-- Waiting steps that nobody wants end; what they need may be wanted by nobody either.
WITH ended AS (
    UPDATE steps
    SET status = 'cancelled', status_reason = :reason, error_message = :message,
        finished_at = now(), runnable_at = NULL, not_before = NULL
    WHERE id = ANY (:step_ids::bigint[]) AND status = 'pending'
    RETURNING id
), unqueued AS (
    DELETE FROM ready_steps r USING ended e WHERE r.step_id = e.id
)
SELECT DISTINCT g.needs_step_id FROM ended e JOIN step_edges g ON g.step_id = e.id;

-- name: request_cancel(step_ids)
-- Running steps that nobody wants shall be stopped by whoever runs them.
UPDATE leases SET cancel_requested = true
WHERE step_id = ANY (:step_ids::bigint[]) AND NOT cancel_requested
RETURNING step_id;

-- name: withdraw_cancel(step_ids)!
-- Somebody wants them after all.
UPDATE leases SET cancel_requested = false
WHERE step_id = ANY (:step_ids::bigint[]) AND cancel_requested;

-- name: lock_restart(step_ids)
-- Ended steps to restart, the failed ones among what they need, what failed because of them, and
-- what was dropped with that.
WITH RECURSIVE down AS (
    SELECT s.id, s.status, s.check_mode FROM steps s WHERE s.id = ANY (:step_ids::bigint[])
    UNION
    SELECT n.id, n.status, n.check_mode
    FROM down d
    JOIN step_edges e ON e.step_id = d.id AND NOT fc_outputs_valid(d.status, d.check_mode)
    JOIN steps n ON n.id = e.needs_step_id AND n.status NOT IN ('pending', 'running')
        AND NOT fc_outputs_valid(n.status, n.check_mode)
), up AS (
    SELECT d.id FROM down d
    WHERE d.status NOT IN ('pending', 'running') AND NOT fc_outputs_valid(d.status, d.check_mode)
    UNION
    SELECT n.id
    FROM up u
    JOIN step_edges e ON e.needs_step_id = u.id
    JOIN steps n ON n.id = e.step_id AND n.status = 'dependency_failed'
), beside AS (
    SELECT n.id
    FROM up u
    JOIN step_edges e ON e.step_id = u.id
    JOIN steps n ON n.id = e.needs_step_id AND n.status = 'cancelled'
    UNION
    SELECT n.id
    FROM beside b
    JOIN step_edges e ON e.step_id = b.id
    JOIN steps n ON n.id = e.needs_step_id AND n.status = 'cancelled'
)
SELECT s.id, s.status, fc_outputs_valid(s.status, s.check_mode) AS outputs_valid
FROM steps s
WHERE s.id IN (SELECT id FROM down UNION SELECT id FROM up UNION SELECT id FROM beside)
ORDER BY s.id
FOR UPDATE OF s;

-- name: restart_steps(step_ids, check_ids)
-- Ended steps are pending again, as new but for their attempts; blockers are counted afresh.
WITH again AS (
    UPDATE steps s
    SET status = 'pending', check_mode = s.id = ANY (:check_ids::bigint[]), infra_failures = 0,
        free_losses = 0, root_cause_step_id = NULL, status_reason = '', error_message = NULL,
        not_before = NULL, started_at = NULL, finished_at = NULL, runnable_at = NULL
    WHERE s.id = ANY (:step_ids::bigint[] || :check_ids::bigint[])
        AND s.status NOT IN ('pending', 'running')
    RETURNING s.id, s.drv_path
), forgotten AS (
    DELETE FROM failed_paths_cache f USING again a WHERE f.drv_path = a.drv_path
)
SELECT id FROM again;

-- name: count_blockers(step_ids)
-- Count what the steps wait for and queue those that wait for nothing; failed needs are returned.
WITH counted AS (
    SELECT s.id, count(n.id) FILTER (WHERE NOT fc_outputs_valid(n.status, n.check_mode))::int AS n
    FROM steps s
    LEFT JOIN step_edges e ON e.step_id = s.id
    LEFT JOIN steps n ON n.id = e.needs_step_id
    WHERE s.id = ANY (:step_ids::bigint[])
    GROUP BY s.id
), updated AS (
    UPDATE steps s
    SET blockers = c.n, runnable_at = CASE WHEN c.n = 0 OR s.check_mode THEN now() END
    FROM counted c
    WHERE s.id = c.id AND s.status = 'pending'
    RETURNING s.*
), queued AS (
    INSERT INTO ready_steps (step_id, class_id, jobset_id, bump, priority)
    SELECT id, class_id, coalesce(jobset_id, '00000000-0000-0000-0000-000000000000'), bump,
        priority
    FROM updated WHERE blockers = 0 OR check_mode
    ON CONFLICT DO NOTHING
)
SELECT DISTINCT n.id
FROM step_edges e
JOIN steps n ON n.id = e.needs_step_id
WHERE e.step_id = ANY (:step_ids::bigint[]) AND n.status NOT IN ('pending', 'running')
    AND NOT fc_outputs_valid(n.status, n.check_mode);

-- name: add_check_step(drv_path, name, system, features, jobset_id, build_id)$
-- A step for a derivation that was found valid, so that it can be built again and compared.
WITH class AS (
    SELECT id FROM step_classes WHERE system = :system AND features = :features::text[]
), added AS (
    INSERT INTO steps (drv_path, name, class_id, status, jobset_id, build_id, finished_at)
    SELECT :drv_path, :name, class.id, 'succeeded', :jobset_id, :build_id, now() FROM class
    ON CONFLICT (drv_path) DO NOTHING
    RETURNING id
)
SELECT id FROM added UNION ALL SELECT id FROM steps WHERE drv_path = :drv_path LIMIT 1;

-- name: bump_steps(step_ids, bump)
-- Steps and all that they wait for go to the front.
WITH RECURSIVE down AS (
    SELECT s.id FROM steps s
    WHERE s.id = ANY (:step_ids::bigint[]) AND s.status IN ('pending', 'running')
    UNION
    SELECT n.id
    FROM down d
    JOIN step_edges e ON e.step_id = d.id
    JOIN steps n ON n.id = e.needs_step_id AND n.status IN ('pending', 'running')
), bumped AS (
    UPDATE steps s SET bump = :bump
    FROM (
        SELECT id FROM steps WHERE id IN (SELECT id FROM down) ORDER BY id FOR NO KEY UPDATE
    ) l
    WHERE s.id = l.id
    RETURNING s.id
), moved AS (
    UPDATE ready_steps r SET bump = :bump FROM bumped b WHERE r.step_id = b.id
)
SELECT id FROM bumped;

-- name: unqueue(step_ids)
-- Waiting steps that shall end without a run, taken out of the queue.
DELETE FROM ready_steps r USING steps s
WHERE r.step_id = ANY (:step_ids::bigint[]) AND s.id = r.step_id AND s.status = 'pending'
RETURNING r.step_id;
