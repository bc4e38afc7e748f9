-- name: take_duty(name, owner, lease_s)$
-- One process at a time has a duty; its epoch, or none while another has it.
INSERT INTO duty_leases (name, owner, expires_at)
VALUES (:name, :owner, now() + make_interval(secs => :lease_s::float8))
ON CONFLICT (name) DO UPDATE
SET owner = excluded.owner, expires_at = excluded.expires_at,
    epoch = duty_leases.epoch + (duty_leases.owner <> excluded.owner)::int
WHERE duty_leases.owner = excluded.owner OR duty_leases.expires_at < now()
RETURNING epoch;

-- name: drop_duty(name, owner)!
-- Let the next one have it at once.
DELETE FROM duty_leases WHERE name = :name AND owner = :owner;

-- name: list_waiting_classes()
-- Classes of which steps are ready, with the longest wait.
SELECT c.id, c.system, c.features, extract(epoch FROM now() - w.runnable_at)::float8 AS waits_s
FROM step_classes c
CROSS JOIN LATERAL (
    SELECT min(s.runnable_at) AS runnable_at
    FROM ready_steps r JOIN steps s ON s.id = r.step_id
    WHERE r.class_id = c.id
) w
WHERE w.runnable_at IS NOT NULL;

-- name: list_unsupported_classes()
-- Classes of which steps were given up because nobody could build them.
SELECT DISTINCT c.id, c.system, c.features
FROM steps s JOIN step_classes c ON c.id = s.class_id
WHERE s.status = 'unsupported_system';

-- name: list_offers(alive_s)
-- What living schedulers and declared builders can build.
SELECT o ->> 'name' AS name, (o ->> 'slots')::int AS slots, (o ->> 'free')::int AS free, true AS is_live,
    coalesce(o ->> 'problem', '') AS problem,
    ARRAY(SELECT jsonb_array_elements_text(o -> 'systems')) AS systems,
    ARRAY(SELECT jsonb_array_elements_text(o -> 'features')) AS features,
    ARRAY(SELECT jsonb_array_elements_text(o -> 'mandatory')) AS mandatory
FROM service_heartbeats h
CROSS JOIN LATERAL jsonb_array_elements(h.info -> 'offers') o
WHERE h.seen_at > now() - make_interval(secs => :alive_s::float8)
UNION ALL
SELECT name, 0, 0, false, '', systems, supported_features, mandatory_features
FROM remote_builders
WHERE enabled AND NOT drain AND deleting_at IS NULL;

-- name: list_given_up(class_id, after_s, limit)
-- Ready steps of a class that have waited for too long.
SELECT s.id
FROM ready_steps r JOIN steps s ON s.id = r.step_id
WHERE r.class_id = :class_id
    AND s.runnable_at < now() - make_interval(secs => :after_s::float8)
ORDER BY s.id
LIMIT :limit::int;

-- name: list_unsupported(class_ids, limit)
-- Steps that were given up and can be built now.
SELECT id FROM steps
WHERE status = 'unsupported_system' AND class_id = ANY (:class_ids::int[])
ORDER BY id LIMIT :limit::int;

-- name: list_orphans(limit)
-- Waiting steps filed under a jobset that is gone, or may not run any more.
SELECT r.step_id, j.id IS NULL AS is_gone
FROM ready_steps r
LEFT JOIN jobsets j ON j.id = r.jobset_id
LEFT JOIN projects p ON p.id = j.project_id
WHERE j.id IS NULL OR j.suspended OR j.deleting_at IS NOT NULL OR p.suspended
    OR p.deleting_at IS NOT NULL
ORDER BY r.step_id LIMIT :limit::int;

-- name: refile(step_ids)
-- File steps under another jobset that wants them, itself or by what needs them.
WITH RECURSIVE up AS (
    SELECT u.id AS step_id, u.id AS at FROM unnest(:step_ids::bigint[]) AS u (id)
    UNION
    SELECT u.step_id, e.step_id
    FROM up u
    JOIN step_edges e ON e.needs_step_id = u.at
    JOIN steps s ON s.id = e.step_id AND s.status = 'pending'
), found AS (
    SELECT DISTINCT ON (u.step_id) u.step_id, v.jobset_id
    FROM up u
    JOIN builds b ON b.step_id = u.at AND b.status IN ('pending', 'running')
    JOIN evaluations v ON v.id = b.evaluation_id
    JOIN jobsets j ON j.id = v.jobset_id
    JOIN projects p ON p.id = j.project_id
    WHERE NOT j.suspended AND NOT p.suspended AND j.deleting_at IS NULL AND p.deleting_at IS NULL
    ORDER BY u.step_id, v.number
), moved AS (
    UPDATE steps s SET jobset_id = f.jobset_id FROM found f WHERE s.id = f.step_id
)
UPDATE ready_steps r SET jobset_id = f.jobset_id FROM found f WHERE r.step_id = f.step_id
RETURNING r.step_id;

-- name: prune_tasks(age_s, limit)!
-- Ended tasks that nobody refers to any more.
DELETE FROM tasks WHERE id IN (
    SELECT t.id FROM tasks t
    WHERE t.state <> 'live' AND t.ended_at < now() - make_interval(secs => :age_s::float8)
        AND NOT EXISTS (SELECT FROM leases l WHERE l.task_id = t.id)
    ORDER BY t.ended_at LIMIT :limit::int
);

-- name: prune_deliveries(age_s, limit)!
-- Webhook deliveries that no forge repeats any more.
DELETE FROM webhook_deliveries WHERE (webhook_config_id, delivery_id) IN (
    SELECT webhook_config_id, delivery_id FROM webhook_deliveries
    WHERE received_at < now() - make_interval(secs => :age_s::float8)
    ORDER BY received_at LIMIT :limit::int
);

-- name: prune_usage(age_s)!
-- Hours that no fair share looks back to.
DELETE FROM jobset_usage WHERE hour < now() - make_interval(secs => :age_s::float8);

-- name: prune_failures(limit)!
-- Remembered failures that are over; each reader tests that itself.
DELETE FROM failed_paths_cache WHERE drv_path IN (
    SELECT drv_path FROM failed_paths_cache WHERE expires_at < now() LIMIT :limit::int
);

-- name: prune_heartbeats(age_s)!
-- Processes that ended without a word.
DELETE FROM service_heartbeats WHERE seen_at < now() - make_interval(secs => :age_s::float8);
