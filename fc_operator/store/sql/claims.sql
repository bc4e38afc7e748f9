-- name: list_waiting()
-- For each class and jobset with ready steps the first of them; jumps from pair to pair.
WITH RECURSIVE heads AS (
    (
        SELECT class_id, jobset_id, bump, priority FROM ready_steps
        ORDER BY class_id, jobset_id, bump DESC, priority DESC, step_id LIMIT 1
    )
    UNION ALL
    SELECT n.class_id, n.jobset_id, n.bump, n.priority
    FROM heads h
    CROSS JOIN LATERAL (
        SELECT r.class_id, r.jobset_id, r.bump, r.priority FROM ready_steps r
        WHERE (r.class_id, r.jobset_id) > (h.class_id, h.jobset_id)
        ORDER BY r.class_id, r.jobset_id, r.bump DESC, r.priority DESC, r.step_id LIMIT 1
    ) n
)
SELECT h.class_id, h.jobset_id, h.bump, h.priority, c.system, c.features
FROM heads h
JOIN step_classes c ON c.id = h.class_id;

-- name: list_usage(jobset_ids, window_s)
-- Shares of jobsets that may run, and the seconds that their steps ran lately or run now.
SELECT j.id, j.scheduling_shares AS shares,
    coalesce(u.seconds, 0) + coalesce(r.seconds, 0) AS used_s, coalesce(r.n, 0) AS running
FROM jobsets j
JOIN projects p ON p.id = j.project_id
LEFT JOIN LATERAL (
    SELECT sum(seconds) AS seconds FROM jobset_usage
    WHERE jobset_id = j.id AND hour > now() - make_interval(secs => :window_s::float8)
) u ON true
LEFT JOIN (
    SELECT s.jobset_id, count(*) AS n,
        sum(extract(epoch FROM now() - a.claimed_at))::float8 AS seconds
    FROM leases l
    JOIN steps s ON s.id = l.step_id
    JOIN attempts a ON a.step_id = l.step_id AND a.attempt = l.attempt
    GROUP BY s.jobset_id
) r ON r.jobset_id = j.id
WHERE j.id = ANY (:jobset_ids::uuid[]) AND NOT j.suspended AND NOT p.suspended
    AND j.deleting_at IS NULL AND p.deleting_at IS NULL;

-- name: claim(task_id, owner, executor, builder, builder_id, lease_s, class_ids, jobset_ids, counts)
-- Take the first ready steps of some classes and jobsets: queue row out; lease, attempt, task in.
WITH quota AS (
    SELECT * FROM unnest(:class_ids::int[], :jobset_ids::uuid[], :counts::int[])
        AS q (class_id, jobset_id, n)
), picked AS (
    SELECT p.step_id
    FROM quota q
    CROSS JOIN LATERAL (
        SELECT r.step_id
        FROM ready_steps r
        JOIN steps s ON s.id = r.step_id
        WHERE r.class_id = q.class_id AND r.jobset_id = q.jobset_id AND s.status = 'pending'
        ORDER BY r.bump DESC, r.priority DESC, r.step_id
        LIMIT q.n
        FOR UPDATE OF r SKIP LOCKED
        FOR NO KEY UPDATE OF s SKIP LOCKED
    ) p
), unqueued AS (
    DELETE FROM ready_steps r USING picked p WHERE r.step_id = p.step_id
), claimed AS (
    UPDATE steps s
    SET status = 'running', attempt = s.attempt + 1, started_at = now(), not_before = NULL
    FROM picked p
    WHERE s.id = p.step_id
    RETURNING s.*
), task AS (
    INSERT INTO tasks (id, kind, executor, builder_id, owner, expires_at)
    SELECT :task_id::uuid, 'steps', :executor, :builder_id::uuid, :owner,
        now() + make_interval(secs => :lease_s::float8)
    WHERE EXISTS (SELECT FROM claimed)
), leased AS (
    INSERT INTO leases (step_id, attempt, task_id, owner, expires_at)
    SELECT id, attempt, :task_id::uuid, :owner, now() + make_interval(secs => :lease_s::float8)
    FROM claimed
), tried AS (
    INSERT INTO attempts (step_id, attempt, task_id, executor, builder_id, builder_name, owner,
        build_id)
    SELECT c.id, c.attempt, :task_id::uuid, :executor, :builder_id::uuid, :builder, :owner, coalesce(
        (SELECT b.id FROM builds b WHERE b.step_id = c.id AND b.status IN ('pending', 'running')
         ORDER BY b.number LIMIT 1),
        (SELECT b.id FROM builds b WHERE b.id = c.build_id))
    FROM claimed c
), shown AS (
    UPDATE builds b
    SET status = 'running', started_at = coalesce(b.started_at, now()),
        builder_id = :builder_id::uuid
    FROM claimed c
    WHERE b.step_id = c.id AND b.status = 'pending'
    RETURNING b.evaluation_id
)
SELECT c.id, c.attempt, c.drv_path, c.name, c.timeout_s, c.max_silent_s, c.check_mode,
    k.system, k.features,
    (SELECT jsonb_object_agg(o.name, o.path) FROM step_outputs o WHERE o.step_id = c.id) AS outputs,
    ARRAY(SELECT DISTINCT evaluation_id FROM shown) AS evaluation_ids
FROM claimed c
JOIN step_classes k ON k.id = c.class_id;

-- name: renew(owner, step_ids, lease_s)
-- All leases of a process at once; those that are just being ended are passed over.
WITH renewed AS (
    UPDATE leases l
    SET expires_at = now() + make_interval(secs => :lease_s::float8)
    FROM (
        SELECT step_id FROM leases
        WHERE owner = :owner AND step_id = ANY (:step_ids::bigint[])
        ORDER BY step_id
        FOR UPDATE SKIP LOCKED
    ) mine
    WHERE l.step_id = mine.step_id
    RETURNING l.task_id
), tasks_renewed AS (
    UPDATE tasks t
    SET expires_at = now() + make_interval(secs => :lease_s::float8)
    WHERE t.id IN (SELECT task_id FROM renewed) AND t.state = 'live'
)
SELECT step_id, attempt, cancel_requested FROM leases
WHERE owner = :owner AND step_id = ANY (:step_ids::bigint[]);

-- name: list_cancelled(owner)
-- Running steps of a process that somebody wants stopped.
SELECT step_id, attempt FROM leases WHERE owner = :owner AND cancel_requested;

-- name: list_expired(limit)
-- Leases that nobody renewed.
SELECT step_id, attempt, task_id FROM leases
WHERE expires_at < now() ORDER BY step_id LIMIT :limit::int;

-- name: list_of_owners(owners)
-- Leases of processes that are known to be gone.
SELECT step_id, attempt, task_id FROM leases
WHERE owner = ANY (:owners::text[]) ORDER BY step_id;

-- name: beat(owner, kind, host, info)!
-- This process lives, and offers what info says.
INSERT INTO service_heartbeats (owner, kind, host, info)
VALUES (:owner, :kind, :host, :info)
ON CONFLICT (owner) DO UPDATE SET seen_at = now(), info = excluded.info;

-- name: end_beat(owner)!
-- This process has ended in order.
DELETE FROM service_heartbeats WHERE owner = :owner;

-- name: fetch_situation(step_id)^
-- What stands in the way of a step.
SELECT s.status, c.system, c.features, s.blockers, s.not_before, s.infra_failures,
    s.status_reason, r.step_id IS NOT NULL AS is_ready,
    coalesce(j.suspended OR p.suspended, false) AS is_suspended,
    j.id IS NULL OR j.deleting_at IS NOT NULL OR p.deleting_at IS NOT NULL AS is_gone,
    coalesce(l.cancel_requested, false) AS is_cancelling, coalesce(a.builder_name, '') AS builder,
    (
        SELECT count(*) FROM (
            SELECT FROM ready_steps q
            WHERE q.class_id = s.class_id AND (q.bump, q.priority, -q.step_id)
                > (s.bump, s.priority, -s.id)
            LIMIT 1000
        ) ahead
    ) AS ahead
FROM steps s
JOIN step_classes c ON c.id = s.class_id
LEFT JOIN ready_steps r ON r.step_id = s.id
LEFT JOIN jobsets j ON j.id = s.jobset_id
LEFT JOIN projects p ON p.id = j.project_id
LEFT JOIN leases l ON l.step_id = s.id
LEFT JOIN attempts a ON a.step_id = l.step_id AND a.attempt = l.attempt
WHERE s.id = :step_id;

-- name: list_blockers(step_id, limit)
-- Steps that a step waits for, the running ones first.
SELECT n.name, n.status
FROM step_edges e
JOIN steps n ON n.id = e.needs_step_id
WHERE e.step_id = :step_id AND NOT fc_outputs_valid(n.status, n.check_mode)
ORDER BY n.status DESC, n.id
LIMIT :limit::int;
