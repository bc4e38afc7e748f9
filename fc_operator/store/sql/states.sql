-- name: list_states(source_kind, source_name, kinds, namespaces, names, evaluation_ids)
-- Declarations of a source with what came of them: all, some by place, or the jobsets of some evaluations.
SELECT m.kind, m.namespace, m.name, m.identity, m.owns, m.uid, m.observed_generation,
    m.last_handled_request, m.conditions, m.pruning_since IS NOT NULL AS pruning,
    CASE m.kind
    WHEN 'Jobset' THEN (
        SELECT jsonb_build_object('number', e.number, 'commit_hash', e.commit_hash,
            'status', e.status, 'message', coalesce(e.error_message, e.status_reason),
            'errors', e.errors, 'ended', e.builds_ended_at IS NOT NULL,
            'builds', CASE WHEN e.builds_ended_at IS NOT NULL THEN e.build_counts ELSE (
                SELECT jsonb_object_agg(c.status, c.n) FROM (SELECT b.status, count(*) AS n
                    FROM builds b WHERE b.evaluation_id = e.id GROUP BY b.status) c) END)
        FROM evaluations e WHERE e.jobset_id = m.object_id ORDER BY e.number DESC LIMIT 1)
    WHEN 'Project' THEN (
        SELECT jsonb_build_object('jobsets', count(*))
        FROM jobsets j WHERE j.project_id = m.object_id AND j.deleting_at IS NULL)
    WHEN 'RemoteBuilder' THEN (
        SELECT jsonb_build_object('running', count(*))
        FROM leases l JOIN tasks t ON t.id = l.task_id
        WHERE t.builder_id = m.object_id AND t.state = 'live')
    WHEN 'ConfigRepository' THEN (
        SELECT jsonb_build_object('last_revision', r.last_revision, 'conditions', r.conditions,
            'declared', (SELECT count(*) FROM managed_resources d
                WHERE d.source_kind = 'ConfigRepository' AND d.source_name = r.name AND d.owns))
        FROM config_repositories r WHERE r.id = m.object_id)
    END AS facts
FROM managed_resources m
WHERE m.source_kind = :source_kind AND m.source_name = :source_name
    AND (:names::text[] IS NULL OR EXISTS (
        SELECT FROM unnest(:kinds::text[], :namespaces::text[], :names::text[])
            AS u (kind, namespace, name)
        WHERE u.kind = m.kind AND u.namespace = m.namespace AND u.name = m.name))
    AND (:evaluation_ids::uuid[] IS NULL OR m.object_id IN (
        SELECT e.jobset_id FROM evaluations e WHERE e.id = ANY(:evaluation_ids::uuid[])));
