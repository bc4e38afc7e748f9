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
