-- name: claim_due(owner, lease_s, most)
-- Jobsets whose source is to be looked at, leased. A claim moves next_check_at to the lease's end:
-- a lost claim comes back by itself, and whoever wakes the jobset meanwhile changes it visibly.
UPDATE jobsets j
SET check_lease_owner = :owner::text,
    check_lease_until = now() + make_interval(secs => :lease_s::float8),
    next_check_at = now() + make_interval(secs => :lease_s::float8)
FROM (
    SELECT j.id
    FROM jobsets j
    JOIN projects p ON p.id = j.project_id
    WHERE j.next_check_at <= now() AND j.state <> 'disabled' AND NOT j.suspended
        AND j.deleting_at IS NULL AND NOT p.suspended AND p.deleting_at IS NULL
        AND (j.check_lease_until IS NULL OR j.check_lease_until <= now())
        AND (j.check_reason = 'request'
            OR NOT (j.state = 'one_shot' AND j.shot_generation >= j.generation)
            AND NOT (j.state = 'one_at_a_time' AND EXISTS (
                SELECT FROM evaluations e
                WHERE e.jobset_id = j.id AND e.builds_ended_at IS NULL
                    AND (e.status IN ('pending', 'running') OR e.jobs > 0)
            )))
    ORDER BY (j.check_reason = 'request') DESC, j.next_check_at, j.id
    LIMIT :most::int
    FOR UPDATE OF j SKIP LOCKED
) due
JOIN jobsets d ON d.id = due.id
JOIN projects p ON p.id = d.project_id
WHERE j.id = due.id
RETURNING j.id, j.project_id, p.name AS project, j.name, p.namespace, p.repository_url,
    p.credentials_secret, j.branch, j.nix_expression, j.flake_mode, j.systems,
    j.allow_import_from_derivation, j.state, j.check_interval, j.check_reason,
    j.requested_commit, j.requested_force, j.check_failures, j.generation, j.only_build_latest;

-- name: next_due_in_s()$
-- Seconds until the next look is due, if any is; what waits for its builds is told by them.
SELECT extract(epoch FROM min(next_check_at) - now())::float8
FROM jobsets
WHERE next_check_at > now() AND state <> 'disabled' AND NOT suspended AND deleting_at IS NULL;

-- name: list_inputs(jobset_ids)
-- Declared inputs of jobsets.
SELECT i.jobset_id, i.name, i.input_type, i.value
FROM jobset_inputs i
WHERE i.jobset_id = ANY (:jobset_ids::uuid[])
ORDER BY i.jobset_id, i.name;

-- name: fetch_build_input(project_id, project, jobset, job)^
-- The newest build of a job that ended well, as an input of a jobset of project_id sees it: its own
-- project's jobs, and those of public projects.
SELECT b.id, b.drv_path, b.nix_name, coalesce(b.outputs ->> 'out', b.build_output_path) AS store_path
FROM builds b
JOIN evaluations e ON e.id = b.evaluation_id
JOIN jobsets j ON j.id = e.jobset_id
JOIN projects p ON p.id = j.project_id
WHERE b.job_name = :job::text AND j.name = :jobset::text AND p.name = :project::text
    AND b.status = 'succeeded' AND e.trust = 'trusted'
    AND (p.id = :project_id OR p.visibility = 'public')
ORDER BY b.number DESC
LIMIT 1;

-- name: hold_claim(jobset_id, owner)^
-- The claimed jobset, locked until commit, if the claim still is ours.
SELECT j.id, j.state, j.generation, j.only_build_latest,
    j.state = 'one_at_a_time' AND EXISTS (
            SELECT FROM evaluations e
            WHERE e.jobset_id = j.id AND e.builds_ended_at IS NULL
                AND (e.status IN ('pending', 'running') OR e.jobs > 0)
        ) AS must_wait,
    j.next_check_at IS NOT DISTINCT FROM j.check_lease_until AS is_unchanged,
    j.suspended OR j.deleting_at IS NOT NULL OR j.state = 'disabled' AS is_stopped
FROM jobsets j
WHERE j.id = :jobset_id AND j.check_lease_owner = :owner::text AND j.check_lease_until > now()
FOR UPDATE;

-- name: fetch_last(jobset_id)^
-- The newest evaluation of a jobset's own branch.
SELECT e.id, e.status, e.status_reason, e.error_kind, e.inputs_hash, e.commit_hash
FROM evaluations e
WHERE e.jobset_id = :jobset_id AND e.pr_number IS NULL
ORDER BY e.number DESC
LIMIT 1;

-- name: insert_evaluation(id, jobset_id, commit_hash, inputs_hash, trigger, force, branch)^
-- A pending evaluation; none if one of this commit is live already.
INSERT INTO evaluations (id, jobset_id, commit_hash, status, inputs_hash, trigger, force, branch)
VALUES (:id, :jobset_id, :commit_hash, 'pending', :inputs_hash, :trigger, :force, :branch)
ON CONFLICT (jobset_id, trust, commit_hash) WHERE status IN ('pending', 'running') AND NOT force
    DO NOTHING
RETURNING id;

-- name: insert_inputs(evaluation_id, names, types, given, revisions, store_paths)!
-- What the inputs were resolved to.
INSERT INTO evaluation_inputs (evaluation_id, name, input_type, value, revision, store_path)
SELECT :evaluation_id, u.*
FROM unnest(:names::text[], :types::text[], :given::text[], :revisions::text[],
    :store_paths::text[]) u;

-- name: supersede(jobset_id, evaluation_id)
-- Older evaluations of a jobset that only wants its newest: those that wait are over, those that
-- run shall end. What was asked for by hand stays.
UPDATE evaluations e
SET cancel_requested = true, status_reason = 'Superseded',
    status = CASE WHEN e.status = 'pending' THEN 'cancelled' ELSE e.status END,
    finished_at = CASE WHEN e.status = 'pending' THEN now() END,
    builds_ended_at = CASE WHEN e.status = 'pending' THEN now() END,
    build_counts = CASE WHEN e.status = 'pending' THEN '{}'::jsonb END,
    error_message = 'a newer evaluation of its jobset took its place'
WHERE e.jobset_id = :jobset_id AND e.id <> :evaluation_id AND e.status IN ('pending', 'running')
    AND e.trigger <> 'request' AND NOT e.cancel_requested AND e.pr_number IS NULL
RETURNING e.id;

-- name: set_revisions(jobset_id, names, revisions)!
-- The last seen revision of each declared input.
UPDATE jobset_inputs i
SET revision = u.revision
FROM unnest(:names::text[], :revisions::text[]) AS u (name, revision)
WHERE i.jobset_id = :jobset_id AND i.name = u.name AND i.revision IS DISTINCT FROM u.revision;

-- name: release(jobset_id, owner, delay_s, commit, is_done)!
-- The end of a look that went well. Whoever woke the jobset meanwhile is served next; what was
-- asked for by hand is forgotten once it is done.
UPDATE jobsets
SET check_lease_owner = NULL, check_lease_until = NULL, last_checked_at = now(),
    check_failures = 0, last_error = NULL, last_commit = coalesce(:commit::text, last_commit),
    requested_commit = CASE WHEN next_check_at = check_lease_until AND :is_done
        THEN NULL ELSE requested_commit END,
    requested_force = CASE WHEN next_check_at = check_lease_until AND :is_done
        THEN false ELSE requested_force END,
    check_reason = CASE WHEN next_check_at = check_lease_until AND :is_done
        THEN 'interval' ELSE check_reason END,
    next_check_at = CASE WHEN next_check_at = check_lease_until
        THEN now() + make_interval(secs => :delay_s::float8) ELSE next_check_at END
WHERE id = :jobset_id AND check_lease_owner = :owner::text;

-- name: release_failed(jobset_ids, owner, errors, delays_s, failures)!
-- The end of looks that failed: the error is shown, the next try is later and later.
UPDATE jobsets j
SET check_lease_owner = NULL, check_lease_until = NULL, last_checked_at = now(),
    check_failures = u.failures, last_error = u.error,
    next_check_at = CASE WHEN j.next_check_at = j.check_lease_until
        THEN now() + make_interval(secs => u.delay_s) ELSE j.next_check_at END
FROM unnest(:jobset_ids::uuid[], :errors::text[], :delays_s::float8[], :failures::int[])
    AS u (id, error, delay_s, failures)
WHERE j.id = u.id AND j.check_lease_owner = :owner::text;

-- name: give_back(owner)!
-- Claims of a process that stops; the jobsets are due again at once.
UPDATE jobsets
SET check_lease_owner = NULL, check_lease_until = NULL, next_check_at = now()
WHERE check_lease_owner = :owner::text;

-- name: give_back_some(owner, jobset_ids)!
-- Some claims of a process that could not write what came of them.
UPDATE jobsets
SET check_lease_owner = NULL, check_lease_until = NULL, next_check_at = now()
WHERE check_lease_owner = :owner::text AND id = ANY (:jobset_ids::uuid[]);

-- name: wake(jobset_ids, reason)
-- Jobsets are due now; a reason that a user or forge gave is not hidden by a lesser one.
UPDATE jobsets
SET next_check_at = now(), check_failures = 0,
    check_reason = CASE WHEN check_reason = 'request' AND next_check_at IS NOT NULL
        THEN check_reason ELSE :reason::text END
WHERE id = ANY (:jobset_ids::uuid[]) AND deleting_at IS NULL
RETURNING id;

-- name: list_wanted_found(evaluation_id)
-- Jobs of an evaluation that were valid from the start and are an input of some jobset.
SELECT b.id
FROM evaluations e
JOIN jobsets j ON j.id = e.jobset_id
JOIN projects p ON p.id = j.project_id
JOIN builds b ON b.evaluation_id = e.id AND b.status = 'succeeded' AND b.cached
WHERE e.id = :evaluation_id AND EXISTS (SELECT FROM jobset_inputs WHERE input_type = 'build')
    AND EXISTS (
        SELECT FROM jobset_inputs i
        WHERE i.input_type = 'build' AND i.value IN (
            j.name || ':' || b.job_name, p.name || ':' || j.name || ':' || b.job_name)
    );

-- name: wake_dependents(build_ids)
-- Other jobsets that have the job of one of these successes as an input and look by themselves are
-- due now, unless their last evaluation had the same output. A jobset never wakes itself.
WITH succeeded AS (
    SELECT b.job_name, coalesce(b.outputs ->> 'out', b.build_output_path) AS store_path,
        j.id AS jobset_id, j.name AS jobset, p.id AS project_id, p.name AS project, p.visibility
    FROM builds b
    JOIN evaluations e ON e.id = b.evaluation_id AND e.trust = 'trusted'
    JOIN jobsets j ON j.id = e.jobset_id
    JOIN projects p ON p.id = j.project_id
    WHERE b.id = ANY (:build_ids::uuid[]) AND b.status = 'succeeded'
        AND EXISTS (SELECT FROM jobset_inputs WHERE input_type = 'build')
), named AS (
    SELECT s.*, u.value, u.needs_project
    FROM succeeded s
    CROSS JOIN LATERAL (VALUES
        (s.jobset || ':' || s.job_name, true),
        (s.project || ':' || s.jobset || ':' || s.job_name, false)
    ) AS u (value, needs_project)
), due AS (
    SELECT c.id
    FROM named n
    JOIN jobset_inputs i ON i.input_type = 'build' AND i.value = n.value
    JOIN jobsets c ON c.id = i.jobset_id
    WHERE c.id <> n.jobset_id AND c.deleting_at IS NULL AND c.next_check_at IS NOT NULL
        AND (c.project_id = n.project_id OR NOT n.needs_project AND n.visibility = 'public')
        AND NOT EXISTS (
            SELECT FROM evaluation_inputs x
            WHERE x.name = i.name AND x.store_path = n.store_path AND x.evaluation_id = (
                SELECT l.id FROM evaluations l
                WHERE l.jobset_id = c.id AND l.pr_number IS NULL
                ORDER BY l.number DESC LIMIT 1)
        )
    ORDER BY c.id
    FOR NO KEY UPDATE OF c
)
UPDATE jobsets j
SET next_check_at = now(),
    check_reason = CASE j.check_reason WHEN 'interval' THEN 'input' ELSE j.check_reason END
WHERE j.id IN (SELECT id FROM due)
RETURNING j.id;

-- name: request(jobset_id, commit, force)^
-- A person wants an evaluation now.
UPDATE jobsets
SET next_check_at = now(), check_reason = 'request', requested_commit = :commit::text,
    requested_force = :force, check_failures = 0
WHERE id = :jobset_id
RETURNING id;

-- name: fetch_stopped(jobset_id)^
-- Why a jobset is not evaluated, if it is not; for people.
SELECT j.id, CASE
    WHEN j.deleting_at IS NOT NULL OR p.deleting_at IS NOT NULL THEN 'it is being deleted'
    WHEN j.state = 'disabled' THEN 'it is disabled'
    WHEN j.suspended THEN 'it is suspended'
    WHEN p.suspended THEN 'its project is suspended'
END AS why
FROM jobsets j
JOIN projects p ON p.id = j.project_id
WHERE j.id = :jobset_id;

-- name: retry_later(jobset_id, delay_s)!
-- After an evaluation that failed by no fault of its source: another look, not too soon.
UPDATE jobsets
SET next_check_at = now() + make_interval(secs => :delay_s::float8)
WHERE id = :jobset_id
    AND (next_check_at IS NULL OR next_check_at > now() + make_interval(secs => :delay_s::float8))
    AND (check_lease_until IS NULL OR next_check_at <> check_lease_until);
