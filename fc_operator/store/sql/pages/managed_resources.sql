-- name: list_managed_resources(kind, source_kind, source, project, condition, all_projects, projects, after_kind, after_identity, after_id, page_size)
-- Declared objects by kind and identity, with who declares them and how they are.
SELECT m.id, m.kind, m.namespace, m.name, m.identity, m.owns, m.source_kind, m.source_name, m.path,
    m.line, m.revision, m.spec_hash, m.generation, m.observed_generation, m.last_handled_request,
    m.conditions, m.pruning_since, m.object_id, m.created_at, m.updated_at
FROM managed_resources m
LEFT JOIN projects p ON m.kind IN ('Project', 'Jobset') AND p.name = split_part(m.identity, '/', 1)
WHERE (:all_projects::boolean
        OR p.visibility = 'public'
        OR p.id = ANY(:projects::uuid[])
        OR (p.id IS NULL AND m.spec ->> 'visibility' IS DISTINCT FROM 'Private'))
    AND (:kind::text IS NULL OR m.kind = :kind::text)
    AND (:source_kind::text IS NULL OR m.source_kind = :source_kind::text)
    AND (:source::text IS NULL OR m.source_name = :source::text)
    AND (:project::text IS NULL OR p.name = :project::text)
    AND (:condition::text IS NULL OR m.conditions @> jsonb_build_array(jsonb_build_object(
        'type', split_part(:condition::text, '=', 1),
        'status', coalesce(nullif(split_part(:condition::text, '=', 2), ''), 'True'))))
    AND (:after_kind::text IS NULL OR (m.kind, m.identity, m.id)
        > (:after_kind::text, :after_identity::text, :after_id::uuid))
ORDER BY m.kind, m.identity, m.id
LIMIT :page_size::int;
