-- name: lock_evaluations(evaluation_ids)!
-- Evaluations whose builds have ended, so that of two last builds one sees the other.
SELECT id FROM evaluations WHERE id = ANY (:evaluation_ids::uuid[]) ORDER BY id FOR NO KEY UPDATE;

-- name: settle_evaluations(evaluation_ids)
-- Evaluations that have ended with all their builds, and how many ended how.
UPDATE evaluations e
SET builds_ended_at = now(),
    build_counts = coalesce((
        SELECT jsonb_object_agg(c.status, c.n)
        FROM (SELECT status, count(*) AS n FROM builds WHERE evaluation_id = e.id GROUP BY status) c
    ), '{}')
WHERE e.id = ANY (:evaluation_ids::uuid[]) AND e.builds_ended_at IS NULL
    AND e.status NOT IN ('pending', 'running')
    AND NOT EXISTS (
        SELECT FROM builds b WHERE b.evaluation_id = e.id AND b.status IN ('pending', 'running')
    )
RETURNING e.id, e.jobset_id;

-- name: promote_channels(evaluation_ids)
-- Channels move to an evaluation of which every job was built well, and never backwards.
UPDATE channels c
SET current_evaluation_id = e.id, promoted_at = now()
FROM (
    SELECT DISTINCT ON (e.jobset_id) e.id, e.jobset_id, e.number
    FROM evaluations e
    WHERE e.id = ANY (:evaluation_ids::uuid[]) AND e.status = 'completed' AND e.errors = 0
        AND e.pr_number IS NULL
        AND EXISTS (SELECT FROM builds b WHERE b.evaluation_id = e.id)
        AND NOT EXISTS (
            SELECT FROM builds b WHERE b.evaluation_id = e.id AND b.status <> 'succeeded'
        )
    ORDER BY e.jobset_id, e.number DESC
) e
WHERE c.jobset_id = e.jobset_id AND NOT EXISTS (
    SELECT FROM evaluations p WHERE p.id = c.current_evaluation_id AND p.number >= e.number
)
RETURNING c.id;

-- name: end_builds(step_ids, statuses, reasons, messages, cached, outputs, output_paths, release_names, warnings)
-- Builds follow their steps to the end.
UPDATE builds b
SET status = u.status, status_reason = u.reason, error_message = nullif(u.message, ''),
    completed_at = now(), root_cause_step_id = NULL, cached = u.cached,
    outputs = coalesce(u.outputs::jsonb, b.outputs),
    build_output_path = coalesce(u.output_path, b.build_output_path),
    release_name = coalesce(u.release_name, b.release_name),
    warnings = ARRAY(SELECT jsonb_array_elements_text(u.warnings::jsonb))
FROM unnest(:step_ids::bigint[], :statuses::text[], :reasons::text[], :messages::text[],
    :cached::boolean[], :outputs::text[], :output_paths::text[], :release_names::text[],
    :warnings::text[])
    AS u (step_id, status, reason, message, cached, outputs, output_path, release_name, warnings)
WHERE b.step_id = u.step_id AND b.status IN ('pending', 'running')
RETURNING b.id, b.evaluation_id, b.step_id;

-- name: delete_results(build_ids)!
-- What earlier runs of builds left behind, before the new run's comes.
WITH products AS (
    DELETE FROM build_products WHERE build_id = ANY (:build_ids::uuid[])
)
DELETE FROM build_metrics WHERE build_id = ANY (:build_ids::uuid[]);
