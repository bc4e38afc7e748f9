-- name: claim_next(owner, task_id, lease_s)^
-- The pending evaluation whose turn it is, now running under a task: requests first, then those of
-- the project with the fewest running, then the oldest. Those of a jobset that may not run wait,
-- but for what only has to be ended.
WITH picked AS (
    SELECT e.id, e.attempt
    FROM evaluations e
    JOIN jobsets j ON j.id = e.jobset_id
    JOIN projects p ON p.id = j.project_id
    WHERE e.status = 'pending' AND (e.cancel_requested
        OR NOT (j.state = 'disabled' OR j.suspended OR p.suspended
            OR j.deleting_at IS NOT NULL OR p.deleting_at IS NOT NULL))
    ORDER BY e.trigger = 'request' DESC, (
        SELECT count(*) FROM evaluations r JOIN jobsets rj ON rj.id = r.jobset_id
        WHERE r.status = 'running' AND rj.project_id = j.project_id
    ), e.evaluation_time, e.id
    LIMIT 1
    FOR UPDATE OF e SKIP LOCKED
), task AS (
    INSERT INTO tasks (id, kind, evaluation_id, executor, owner, attempt, expires_at)
    SELECT :task_id::uuid, 'evaluation', picked.id, 'local', :owner::text, picked.attempt + 1,
        now() + make_interval(secs => :lease_s::float8)
    FROM picked
    RETURNING id, evaluation_id, attempt
)
UPDATE evaluations e
SET status = 'running', task_id = task.id, attempt = task.attempt,
    started_at = coalesce(e.started_at, now()), status_reason = CASE
        WHEN e.cancel_requested THEN e.status_reason ELSE '' END, error_message = NULL
FROM task
WHERE e.id = task.evaluation_id
RETURNING e.id, e.jobset_id, e.attempt, e.cancel_requested, e.status_reason;

-- name: fetch_job(evaluation_id)^
-- What a claimed evaluation is about: its commit, and its jobset as it is declared now.
SELECT e.id, e.jobset_id, e.number, e.commit_hash, e.inputs_hash, e.force, e.trust, e.branch,
    j.nix_expression, j.flake_mode, j.systems, j.allow_import_from_derivation,
    j.evaluation_timeout_s, j.check_interval, j.check_failures, j.name AS jobset,
    p.name AS project, p.namespace, p.repository_url, p.credentials_secret, p.id AS project_id
FROM evaluations e
JOIN jobsets j ON j.id = e.jobset_id
JOIN projects p ON p.id = j.project_id
WHERE e.id = :evaluation_id;

-- name: list_inputs(evaluation_id)
-- What the inputs of an evaluation were resolved to.
SELECT name, input_type, value, revision, store_path
FROM evaluation_inputs
WHERE evaluation_id = :evaluation_id
ORDER BY name;

-- name: fetch_build_version(build_id)^
-- Of a build that is an input.
SELECT drv_path, nix_name FROM builds WHERE id = :build_id;

-- name: describe(evaluation_id, task_id, tree_hash, subject, author, inputs_hash, evaluator, evaluator_version, checkout_ms)^
-- What the checkout told, and who evaluates; shown while it runs.
UPDATE evaluations
SET tree_hash = :tree_hash, subject = :subject, author = :author, inputs_hash = :inputs_hash,
    evaluator = :evaluator, evaluator_version = :evaluator_version, checkout_ms = :checkout_ms
WHERE id = :evaluation_id AND task_id = :task_id AND status = 'running'
RETURNING id;

-- name: describe_equal(evaluation_id, task_id, equal_id, evaluator, evaluator_version)^
-- What is known of the commit from an evaluation with the same key.
UPDATE evaluations e
SET tree_hash = s.tree_hash, subject = s.subject, author = s.author, inputs_hash = s.inputs_hash,
    evaluator = :evaluator, evaluator_version = :evaluator_version
FROM evaluations s
WHERE e.id = :evaluation_id AND e.task_id = :task_id AND e.status = 'running' AND s.id = :equal_id
RETURNING e.id;

-- name: set_store_paths(evaluation_id, names, store_paths)!
-- Where the content of inputs lies.
UPDATE evaluation_inputs i
SET store_path = u.store_path
FROM unnest(:names::text[], :store_paths::text[]) AS u (name, store_path)
WHERE i.evaluation_id = :evaluation_id AND i.name = u.name;

-- name: fetch_equal(key, evaluation_id)^
-- The newest completed evaluation with the same key.
SELECT id FROM evaluations
WHERE inputs_hash = :key AND status = 'completed' AND id <> :evaluation_id
ORDER BY number DESC
LIMIT 1;

-- name: renew(owner, task_ids, lease_s)
-- Leases of ours, renewed; a task that does not come back is lost.
UPDATE tasks t
SET expires_at = now() + make_interval(secs => :lease_s::float8)
FROM evaluations e
WHERE t.id = ANY (:task_ids::uuid[]) AND t.owner = :owner::text AND t.state = 'live'
    AND e.id = t.evaluation_id AND e.task_id = t.id
RETURNING t.id, t.cancel_requested OR e.cancel_requested AS cancel_requested, e.status_reason;

-- name: list_cancels(task_ids)
-- Those of our tasks that shall end.
SELECT t.id, e.status_reason
FROM tasks t
JOIN evaluations e ON e.id = t.evaluation_id
WHERE t.id = ANY (:task_ids::uuid[]) AND (t.cancel_requested OR e.cancel_requested);

-- name: give_back(task_id, is_charged, reason)^
-- An evaluation that its holder leaves: pending again, and the try may not be counted.
WITH task AS (
    UPDATE tasks SET state = 'ended', ended_at = now()
    WHERE id = :task_id AND state = 'live'
    RETURNING id, evaluation_id
)
UPDATE evaluations e
SET status = 'pending', task_id = NULL,
    attempt = e.attempt - CASE WHEN :is_charged THEN 0 ELSE 1 END,
    status_reason = CASE WHEN e.cancel_requested OR :reason::text = '' THEN e.status_reason
        ELSE :reason::text END
FROM task
WHERE e.id = task.evaluation_id AND e.task_id = task.id AND e.status = 'running'
RETURNING e.id;

-- name: give_back_owned(owner)
-- All that a process still holds when it stops.
WITH ended AS (
    UPDATE tasks SET state = 'ended', ended_at = now()
    WHERE owner = :owner::text AND state = 'live' AND kind = 'evaluation'
    RETURNING id, evaluation_id
)
UPDATE evaluations e
SET status = 'pending', task_id = NULL, attempt = e.attempt - 1
FROM ended
WHERE e.id = ended.evaluation_id AND e.task_id = ended.id AND e.status = 'running'
RETURNING e.id;

-- name: reap_lost()
-- Evaluations whose holder is gone: pending again, once for each loss; errors are told anew.
WITH lost AS (
    UPDATE tasks SET state = 'lost', ended_at = now()
    WHERE id IN (
        SELECT id FROM tasks
        WHERE kind = 'evaluation' AND state = 'live' AND expires_at < now()
        ORDER BY id
        FOR UPDATE SKIP LOCKED
    )
    RETURNING id, evaluation_id
), requeued AS (
    UPDATE evaluations e
    SET status = 'pending', task_id = NULL, errors = 0, status_reason = CASE
        WHEN e.cancel_requested THEN e.status_reason ELSE 'LeaseLost' END
    FROM lost
    WHERE e.id = lost.evaluation_id AND e.task_id = lost.id AND e.status = 'running'
    RETURNING e.id, e.attempt
), forgotten AS (
    DELETE FROM evaluation_errors x USING requeued WHERE x.evaluation_id = requeued.id
)
SELECT id, attempt FROM requeued ORDER BY id;

-- name: explain_waiting(reason, message)
-- Say on every waiting evaluation why none is started; an empty reason takes that back.
UPDATE evaluations
SET status_reason = :reason::text, error_message = nullif(:message::text, '')
WHERE status = 'pending' AND NOT cancel_requested
    AND (status_reason <> :reason::text OR error_message IS DISTINCT FROM nullif(:message::text, ''))
    AND (:reason::text <> '' OR status_reason = 'PrerequisiteMissing')
RETURNING id;

-- name: count_pending()$
-- How many wait.
SELECT count(*) FROM evaluations WHERE status = 'pending';

-- name: fetch_status(evaluation_id)^
-- For a person who wants to cancel it; locked until commit.
SELECT id, status, task_id FROM evaluations WHERE id = :evaluation_id FOR UPDATE;

-- name: cancel_pending(evaluation_id)!
-- One that never began is over at once.
UPDATE evaluations
SET status = 'cancelled', status_reason = 'Cancelled', cancel_requested = true,
    finished_at = now(), builds_ended_at = now(), build_counts = '{}'
WHERE id = :evaluation_id AND status = 'pending';

-- name: cancel_running(evaluation_id)!
-- Ask the holder of one that runs to end it.
WITH asked AS (
    UPDATE tasks SET cancel_requested = true
    WHERE evaluation_id = :evaluation_id AND state = 'live'
)
UPDATE evaluations SET cancel_requested = true, status_reason = 'Cancelled'
WHERE id = :evaluation_id AND status = 'running';

-- name: list_rooted(evaluation_ids)
-- Of these, the evaluations whose derivations are still wanted: not ended, or kept, or young.
SELECT e.id
FROM evaluations e
JOIN jobsets j ON j.id = e.jobset_id
WHERE e.id = ANY (:evaluation_ids::uuid[])
    AND (e.builds_ended_at IS NULL OR e.builds_ended_at > now() - interval '1 day'
        OR (SELECT count(*) FROM evaluations n
            WHERE n.jobset_id = e.jobset_id AND n.number > e.number AND n.status = 'completed')
            < j.keep_nr
        OR EXISTS (SELECT FROM builds b WHERE b.evaluation_id = e.id
            AND (b.kept_at IS NOT NULL OR b.status IN ('pending', 'running'))));
