-- name: prepare_stage()#
-- This session's own stage, emptied by each commit.
CREATE TEMP TABLE IF NOT EXISTS stage_steps (LIKE public.stage_steps) ON COMMIT DELETE ROWS;

-- name: add_classes(systems, features)!
-- Classes that are not there yet; features are joined by spaces.
INSERT INTO step_classes (system, features)
SELECT u.system, string_to_array(u.features, ' ')
FROM unnest(:systems::text[], :features::text[]) AS u (system, features)
WHERE NOT EXISTS (
    SELECT FROM step_classes c
    WHERE c.system = u.system AND c.features = string_to_array(u.features, ' ')
)
ON CONFLICT DO NOTHING;

-- name: list_classes(systems, features)
-- Ids of the named classes.
SELECT c.id, u.system, u.features
FROM unnest(:systems::text[], :features::text[]) AS u (system, features)
JOIN step_classes c ON c.system = u.system AND c.features = string_to_array(u.features, ' ');

-- name: fetch_context(evaluation_id)^
-- What an ingest needs to know about its evaluation.
SELECT e.jobset_id, j.timeout_s, j.max_silent_s, (
    SELECT p.id FROM evaluations p
    WHERE p.jobset_id = e.jobset_id AND p.number < e.number AND p.status = 'completed'
    ORDER BY p.number DESC LIMIT 1
) AS previous_id
FROM evaluations e
JOIN jobsets j ON j.id = e.jobset_id
WHERE e.id = :evaluation_id;

-- name: hold_fence(evaluation_id, task_id)$
-- The task, held until commit so that nobody takes the evaluation over meanwhile; none if it was.
SELECT t.id
FROM tasks t
JOIN evaluations e ON e.id = t.evaluation_id AND e.task_id = t.id
WHERE t.id = :task_id AND e.id = :evaluation_id AND t.state = 'live' AND e.status = 'running'
FOR SHARE OF t;

-- name: lock_needed_steps(drv_paths)
-- Steps that others will need, held against their end (not against a claim) until commit.
SELECT s.id, s.drv_path, s.status, fc_outputs_valid(s.status, s.check_mode) AS outputs_valid,
    extract(epoch FROM now() - s.finished_at)::float8 AS finished_age_s,
    s.root_cause_step_id, r.drv_path AS root_cause_drv,
    f.drv_path IS NOT NULL AS is_remembered
FROM steps s
LEFT JOIN steps r ON r.id = s.root_cause_step_id
LEFT JOIN failed_paths_cache f
    ON f.drv_path = coalesce(r.drv_path, s.drv_path) AND f.expires_at > now()
WHERE s.drv_path = ANY (:drv_paths::text[])
ORDER BY s.id
FOR KEY SHARE OF s;

-- name: lock_shown_steps(drv_paths)
-- As lock_needed_steps, and against a claim too: new builds will show their status.
SELECT s.id, s.drv_path, s.status, fc_outputs_valid(s.status, s.check_mode) AS outputs_valid,
    extract(epoch FROM now() - s.finished_at)::float8 AS finished_age_s,
    s.root_cause_step_id, r.drv_path AS root_cause_drv,
    f.drv_path IS NOT NULL AS is_remembered
FROM steps s
LEFT JOIN steps r ON r.id = s.root_cause_step_id
LEFT JOIN failed_paths_cache f
    ON f.drv_path = coalesce(r.drv_path, s.drv_path) AND f.expires_at > now()
WHERE s.drv_path = ANY (:drv_paths::text[])
ORDER BY s.id
FOR SHARE OF s;

-- name: list_cancelled_steps(drv_paths)
-- Those of some steps that ended as cancelled.
SELECT drv_path FROM steps WHERE drv_path = ANY (:drv_paths::text[]) AND status = 'cancelled';

-- name: insert_steps(jobset_id)
-- New steps from the stage, in one order for all; what somebody else has just inserted stays his.
INSERT INTO steps (drv_path, name, class_id, status, blockers, priority, jobset_id, timeout_s,
    max_silent_s, is_fixed_output, prefer_local, build_id, runnable_at, finished_at, status_reason)
SELECT s.drv_path, s.name, s.class_id,
    CASE WHEN f.drv_path IS NULL THEN 'pending' ELSE 'cached_failure' END,
    s.blockers, s.priority, :jobset_id, s.timeout_s, s.max_silent_s, s.is_fixed_output,
    s.prefer_local, s.build_id,
    CASE WHEN s.blockers = 0 THEN now() END,
    CASE WHEN f.drv_path IS NOT NULL THEN now() END,
    CASE WHEN f.drv_path IS NULL THEN '' ELSE 'CachedFailure' END
FROM stage_steps s
LEFT JOIN failed_paths_cache f ON f.drv_path = s.drv_path AND f.expires_at > now()
ORDER BY s.drv_path
ON CONFLICT (drv_path) DO NOTHING
RETURNING id, drv_path, status;

-- name: revive_steps(step_ids, blockers, priorities, jobset_id)!
-- Ended steps are wanted again: as new, but for their attempts, which go on counting.
UPDATE steps s
SET status = 'pending', blockers = u.blockers, priority = u.priority, jobset_id = :jobset_id,
    check_mode = false, infra_failures = 0, free_losses = 0, root_cause_step_id = NULL,
    status_reason = '', error_message = NULL, not_before = NULL, started_at = NULL,
    finished_at = NULL, runnable_at = CASE WHEN u.blockers = 0 THEN now() END
FROM unnest(:step_ids::bigint[], :blockers::int[], :priorities::int[])
    AS u (step_id, blockers, priority)
WHERE s.id = u.step_id;

-- name: delete_edges(step_ids)!
-- What revived steps needed when they were planned before.
DELETE FROM step_edges WHERE step_id = ANY (:step_ids::bigint[]);

-- name: set_blockers(step_ids, blockers)!
-- New steps whose blockers were not what they seemed when they were inserted.
UPDATE steps s
SET blockers = u.blockers, runnable_at = CASE WHEN u.blockers = 0 THEN now() END
FROM unnest(:step_ids::bigint[], :blockers::int[]) AS u (step_id, blockers)
WHERE s.id = u.step_id;

-- name: list_known_jobs(evaluation_id, job_names)
-- Jobs that an earlier try at this batch, or at this evaluation, has written.
SELECT b.job_name, b.id
FROM unnest(:job_names::text[]) AS u (job_name)
CROSS JOIN LATERAL (
    -- One look into the index per name, whatever the statistics say.
    SELECT job_name, id FROM builds
    WHERE evaluation_id = :evaluation_id AND job_name = u.job_name LIMIT 1
) b;

-- name: list_unchanged(evaluation_id, job_names, drv_paths)
-- Which jobs had the same derivation in that evaluation.
SELECT u.job_name
FROM unnest(:job_names::text[], :drv_paths::text[]) AS u (job_name, drv_path)
CROSS JOIN LATERAL (
    SELECT drv_path FROM builds
    WHERE evaluation_id = :evaluation_id AND job_name = u.job_name LIMIT 1
) b
WHERE b.drv_path = u.drv_path;

-- name: raise_steps(step_ids, priorities, timeouts_s, max_silents_s, timeout_s, max_silent_s, jobset_id)
-- Shared steps take the most urgent priority, the longest limits and the hungriest jobset of all.
WITH wanted AS (
    SELECT s.id, s.jobset_id, greatest(s.priority, u.priority) AS priority,
        fc_longest(s.timeout_s, u.timeout_s, :timeout_s::int) AS timeout_s,
        fc_longest(s.max_silent_s, u.max_silent_s, :max_silent_s::int) AS max_silent_s
    FROM unnest(:step_ids::bigint[], :priorities::int[], :timeouts_s::int[], :max_silents_s::int[])
        AS u (step_id, priority, timeout_s, max_silent_s)
    JOIN steps s ON s.id = u.step_id
    WHERE s.status = 'pending'
    ORDER BY s.id
    FOR NO KEY UPDATE OF s
), used AS (
    -- What jobsets had lately of their share; those that may not run had everything.
    SELECT j.id, CASE WHEN j.suspended OR j.deleting_at IS NOT NULL THEN 'infinity'::float8 ELSE
        coalesce(sum(u.seconds), 0) / j.scheduling_shares END AS used
    FROM jobsets j
    LEFT JOIN jobset_usage u ON u.jobset_id = j.id AND u.hour > now() - interval '24 hours'
    WHERE j.id = :jobset_id OR j.id IN (SELECT jobset_id FROM wanted)
    GROUP BY j.id
), filed AS (
    SELECT w.*, CASE WHEN mine.used < coalesce(theirs.used, 'infinity') THEN mine.id
        ELSE coalesce(w.jobset_id, mine.id) END AS new_jobset_id
    FROM wanted w
    JOIN used mine ON mine.id = :jobset_id
    LEFT JOIN used theirs ON theirs.id = w.jobset_id
)
UPDATE steps s
SET priority = w.priority, timeout_s = w.timeout_s, max_silent_s = w.max_silent_s,
    jobset_id = w.new_jobset_id
FROM filed w
WHERE s.id = w.id AND (s.priority, s.timeout_s, s.max_silent_s, s.jobset_id)
    IS DISTINCT FROM (w.priority, w.timeout_s, w.max_silent_s, w.new_jobset_id)
RETURNING s.id;

-- name: raise_ready(step_ids)!
-- The queue follows the priorities of raised steps.
UPDATE ready_steps r
SET priority = s.priority, jobset_id = s.jobset_id
FROM steps s
WHERE r.step_id = s.id AND s.id = ANY (:step_ids::bigint[])
    AND (r.priority, r.jobset_id) IS DISTINCT FROM (s.priority, s.jobset_id);

-- name: add_errors(evaluation_id, nrs, attr_paths, job_names, messages)
-- Errors of jobs, but for those that an earlier try has written.
INSERT INTO evaluation_errors (evaluation_id, nr, attr_path, job_name, message)
SELECT :evaluation_id, coalesce(m.nr, 0) + u.nr,
    ARRAY(SELECT jsonb_array_elements_text(u.attr_path::jsonb)), u.job_name, u.message
FROM unnest(:nrs::int[], :attr_paths::text[], :job_names::text[], :messages::text[])
    AS u (nr, attr_path, job_name, message)
CROSS JOIN (SELECT max(nr) AS nr FROM evaluation_errors WHERE evaluation_id = :evaluation_id) m
WHERE NOT EXISTS (
    SELECT FROM evaluation_errors x
    WHERE x.evaluation_id = :evaluation_id AND x.job_name = u.job_name AND x.message = u.message
)
RETURNING nr;

-- name: count_batch(evaluation_id, jobs, jobs_new, errors)!
-- Progress of an evaluation.
UPDATE evaluations
SET jobs = jobs + :jobs, jobs_new = jobs_new + :jobs_new, errors = errors + :errors
WHERE id = :evaluation_id;

-- name: fetch_now()$
-- When this transaction began.
SELECT now();

-- name: end_evaluation(evaluation_id, task_id, status, status_reason, error_kind, error_message, evaluator, evaluator_version, checkout_ms, evaluation_ms)!
-- The evaluator has ended; its builds may still run.
UPDATE evaluations
SET status = :status, status_reason = :status_reason, error_kind = :error_kind,
    error_message = nullif(:error_message::text, ''), evaluator = nullif(:evaluator::text, ''),
    evaluator_version = nullif(:evaluator_version::text, ''), checkout_ms = :checkout_ms,
    evaluation_ms = :evaluation_ms, finished_at = now()
WHERE id = :evaluation_id AND task_id = :task_id AND status = 'running';

-- name: end_task(task_id)!
-- The task of an evaluation is done.
UPDATE tasks SET state = 'ended', ended_at = now() WHERE id = :task_id AND state = 'live';

-- name: note_shot(evaluation_id)!
-- A one_shot jobset has fired for its present declaration.
UPDATE jobsets j
SET shot_generation = j.generation
FROM evaluations e
WHERE e.id = :evaluation_id AND j.id = e.jobset_id AND j.state = 'one_shot'
    AND (j.check_reason = 'declared' AND j.next_check_at <= now()) IS NOT TRUE;

-- name: list_jobs(evaluation_id)
-- All jobs of an evaluation, with the derivations that constituents and dependencies go by.
SELECT b.id, b.job_name, b.drv_path,
    b.step_id IS NOT NULL AND NOT fc_outputs_valid(s.status, s.check_mode) AS is_step
FROM builds b
LEFT JOIN steps s ON s.id = b.step_id
WHERE b.evaluation_id = :evaluation_id;

-- name: list_reusable(evaluation_id, after, limit)
-- Jobs of an ended evaluation as their evaluator told them, a page at a time.
SELECT b.id, b.attr_path, b.job_name, b.nix_name, b.system, b.drv_path, b.description, b.homepage,
    b.license, b.maintainers, b.timeout_s, b.max_silent_s, b.priority, b.is_channel,
    b.is_aggregate, b.constituents, coalesce((
        SELECT jsonb_object_agg(o.name, o.path) FROM step_outputs o WHERE o.step_id = b.step_id
    ), b.outputs) AS outputs
FROM builds b
WHERE b.evaluation_id = :evaluation_id AND b.job_name > :after
ORDER BY b.job_name
LIMIT :limit::int;

-- name: list_reusable_errors(evaluation_id)
-- Errors of an ended evaluation.
SELECT attr_path, message FROM evaluation_errors WHERE evaluation_id = :evaluation_id ORDER BY nr;

-- name: note_reuse(evaluation_id, source_id)!
-- Whose rows an evaluation has taken over.
UPDATE evaluations e
SET reused_from = s.id, evaluator = s.evaluator, evaluator_version = s.evaluator_version
FROM evaluations s
WHERE e.id = :evaluation_id AND s.id = :source_id;
