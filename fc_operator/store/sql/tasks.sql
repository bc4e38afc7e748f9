-- name: fetch(task_id)^
-- A task as its agent may know it; what ran out is over, whether somebody has noticed or not.
SELECT t.id, t.kind, t.evaluation_id, t.attempt, t.state, t.expires_at < now() AS is_expired,
    t.fetch_token_hash, t.work_token_hash, t.fetched_at IS NOT NULL AS is_fetched,
    t.told_at IS NOT NULL AS is_told, t.next_report, t.next_event, t.work IS NOT NULL AS has_work,
    t.cancel_requested OR coalesce(e.cancel_requested, false) AS cancel_requested,
    coalesce(e.status_reason, '') AS status_reason
FROM tasks t
LEFT JOIN evaluations e ON e.id = t.evaluation_id AND e.task_id = t.id
WHERE t.id = :task_id;

-- name: set_work(task_id, work, credentials)^
-- What an evaluation's agent has to do, before there is a pod that could ask.
UPDATE tasks
SET executor = 'pod', work = :work, credentials_ciphertext = :credentials
WHERE id = :task_id AND state = 'live' AND work IS NULL
RETURNING id;

-- name: set_sandbox(task_id, sandbox)!
-- Whose sandbox builds of an evaluation are in, once it is known where it runs.
UPDATE tasks SET work = jsonb_set(work, '{nix,sandbox}', to_jsonb(:sandbox::text))
WHERE id = :task_id AND work IS NOT NULL;

-- name: open_fetch(task_id, token_hash, agent)^
-- The first container of a pod begins; again for the same token only.
UPDATE tasks
SET fetch_token_hash = :token_hash, begun_at = coalesce(begun_at, now()), heartbeat_at = now(),
    agent = :agent
WHERE id = :task_id AND state = 'live' AND expires_at >= now() AND told_at IS NULL
    AND work IS NOT NULL AND kind = 'evaluation' AND work_token_hash IS NULL
    AND (fetch_token_hash IS NULL OR fetch_token_hash = :token_hash)
RETURNING work;

-- name: open_work(task_id, token_hash, agent)^
-- The container that works begins; an evaluation's only when its source is there.
UPDATE tasks
SET work_token_hash = :token_hash, begun_at = coalesce(begun_at, now()), heartbeat_at = now(),
    agent = :agent, credentials_ciphertext = NULL
WHERE id = :task_id AND state = 'live' AND expires_at >= now() AND told_at IS NULL
    AND work IS NOT NULL AND (kind = 'steps' OR fetched_at IS NOT NULL)
    AND (work_token_hash IS NULL OR work_token_hash = :token_hash)
RETURNING work;

-- name: fetch_credentials(task_id)^
-- Of a fetch step that has not ended.
SELECT credentials_ciphertext FROM tasks
WHERE id = :task_id AND state = 'live' AND fetched_at IS NULL;

-- name: set_fetched(task_id, checkout)^
-- The checkout is there, and the credentials go; what was told first counts.
UPDATE tasks
SET fetched_at = coalesce(fetched_at, now()), credentials_ciphertext = NULL,
    checkout = coalesce(checkout, :checkout)
WHERE id = :task_id AND state = 'live' AND expires_at >= now()
RETURNING id;

-- name: beat(task_id, lease_s)^
-- Its agent lives. The lease of an evaluation is the scheduler's, which reads its reports.
UPDATE tasks
SET heartbeat_at = now(), expires_at = CASE WHEN kind = 'steps'
    THEN now() + make_interval(secs => :lease_s::float8) ELSE expires_at END
WHERE id = :task_id AND state = 'live' AND expires_at >= now() AND told_at IS NULL
RETURNING id;

-- name: renew_leases(task_id, lease_s)
-- The attempts that a task holds, renewed; those that are just being ended are passed over.
WITH renewed AS (
    UPDATE leases l
    SET expires_at = now() + make_interval(secs => :lease_s::float8)
    FROM (
        SELECT step_id FROM leases WHERE task_id = :task_id
        ORDER BY step_id
        FOR UPDATE SKIP LOCKED
    ) mine
    WHERE l.step_id = mine.step_id
)
SELECT step_id, attempt, cancel_requested FROM leases WHERE task_id = :task_id;

-- name: list_leases(task_id)
-- The attempts that a task holds.
SELECT step_id, attempt, task_id FROM leases WHERE task_id = :task_id ORDER BY step_id;

-- name: lock_reports(task_id)^
-- How far the reports of a task have come; locked.
SELECT next_report, told_at IS NOT NULL AS is_told,
    state <> 'live' OR expires_at < now() AS is_over
FROM tasks
WHERE id = :task_id
FOR NO KEY UPDATE;

-- name: count_reports(task_id)$
-- Reports that nobody has taken yet.
SELECT count(*) FROM task_reports WHERE task_id = :task_id;

-- name: insert_report(task_id, seq, payload, is_end)!
-- The next report.
WITH written AS (
    INSERT INTO task_reports (task_id, seq, payload) VALUES (:task_id, :seq, :payload)
)
UPDATE tasks
SET next_report = :seq::int + 1, heartbeat_at = now(), told_at = CASE WHEN :is_end::boolean
    THEN now() END
WHERE id = :task_id;

-- name: delete_reports(task_id, below)!
-- Reports that were taken.
DELETE FROM task_reports WHERE task_id = :task_id AND seq < :below;

-- name: list_reports(task_id, start, limit)
-- Reports that were not taken yet, in order.
SELECT seq, payload FROM task_reports
WHERE task_id = :task_id AND seq >= :start ORDER BY seq LIMIT :limit::int;

-- name: raise_next_event(task_id, next_event)!
-- Events below this were recorded.
UPDATE tasks SET next_event = greatest(next_event, :next_event::bigint), heartbeat_at = now()
WHERE id = :task_id;

-- name: lock_attempts(step_ids, attempts, task_ids)
-- Attempts of which something is told, one teller at a time.
SELECT a.step_id
FROM unnest(:step_ids::bigint[], :attempts::int[], :task_ids::uuid[])
    AS u (step_id, attempt, task_id)
JOIN attempts a ON a.step_id = u.step_id AND a.attempt = u.attempt AND a.task_id = u.task_id
ORDER BY a.step_id
FOR NO KEY UPDATE OF a;

-- name: add_phases(step_ids, attempts, task_ids, names, ats_ms, most)!
-- Phases of running attempts that were locked before, each once.
UPDATE attempts a
SET phases = a.phases || u.phases
FROM (
    SELECT n.step_id, n.attempt, n.task_id,
        jsonb_agg(jsonb_build_object('name', n.name, 'at_ms', n.at_ms) ORDER BY n.nr) AS phases
    FROM unnest(:step_ids::bigint[], :attempts::int[], :task_ids::uuid[], :names::text[],
        :ats_ms::bigint[]) WITH ORDINALITY AS n (step_id, attempt, task_id, name, at_ms, nr)
    JOIN attempts k ON k.step_id = n.step_id AND k.attempt = n.attempt
    WHERE NOT k.phases @> jsonb_build_array(jsonb_build_object('name', n.name, 'at_ms', n.at_ms))
    GROUP BY n.step_id, n.attempt, n.task_id
) u
WHERE a.step_id = u.step_id AND a.attempt = u.attempt AND a.task_id = u.task_id
    AND a.ended_at IS NULL AND jsonb_array_length(a.phases) < :most::int;

-- name: list_phases(step_ids, attempts)
-- What is known of the phases of attempts.
SELECT a.step_id, a.phases
FROM unnest(:step_ids::bigint[], :attempts::int[]) AS u (step_id, attempt)
JOIN attempts a ON a.step_id = u.step_id AND a.attempt = u.attempt;

-- name: list_outputs(step_ids)
-- What steps should make; the path is NULL where only the build tells it.
SELECT step_id, name, path FROM step_outputs WHERE step_id = ANY (:step_ids::bigint[]);

-- name: list_cached(paths)
-- Those of some paths that the binary cache has, as it verified them.
SELECT store_path, nar_hash, nar_size FROM cache_paths WHERE store_path = ANY (:paths::text[]);

-- name: lock_log(step_id, attempt, task_id)^
-- An attempt that the task holds; one writer of its log at a time.
SELECT a.step_id
FROM attempts a
JOIN leases l ON l.step_id = a.step_id AND l.attempt = a.attempt AND l.task_id = a.task_id
WHERE a.step_id = :step_id AND a.attempt = :attempt AND a.task_id = :task_id
    AND a.ended_at IS NULL
FOR NO KEY UPDATE OF a;

-- name: fetch_log_size(step_id, attempt)$
-- Where the log of an attempt goes on.
SELECT start_offset + length(data) FROM log_chunks
WHERE step_id = :step_id AND attempt = :attempt
ORDER BY start_offset DESC LIMIT 1;

-- name: fetch_progress(task_id)^
-- What a scheduler that waits for a pod's evaluation looks at.
SELECT state, begun_at IS NOT NULL AS is_begun, told_at IS NOT NULL AS is_told, next_report,
    checkout, pod_phase, pod_ending,
    extract(epoch FROM now() - coalesce(heartbeat_at, begun_at))::float8 AS silent_s
FROM tasks WHERE id = :task_id;

-- name: fetch_last_ending(evaluation_id)^
-- Why the last pod of an evaluation that told no end is gone.
SELECT pod_ending FROM tasks
WHERE evaluation_id = :evaluation_id AND state <> 'live' AND pod_ending IS NOT NULL
ORDER BY created_at DESC LIMIT 1;
