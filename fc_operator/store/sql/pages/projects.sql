-- name: list_projects(all_projects, projects, after_name, page_size)
-- Projects by name, with how many jobsets they have and how their newest evaluation went.
SELECT p.id, p.number, p.name, p.display_name, p.description, p.homepage, p.owner,
    p.repository_url, p.visibility, p.suspended, p.deleting_at, p.created_at, p.updated_at,
    (SELECT count(*) FROM jobsets j WHERE j.project_id = p.id) AS jobsets
FROM projects p
WHERE (p.visibility = 'public' OR :all_projects::boolean OR p.id = ANY(:projects::uuid[]))
    AND (:after_name::text IS NULL OR p.name > :after_name::text)
ORDER BY p.name
LIMIT :page_size::int;

-- name: fetch(name, number, id, all_projects, projects)^
-- One project with who declares it; by name first, then by number or id.
SELECT p.id, p.number, p.name, p.display_name, p.description, p.homepage, p.owner,
    p.repository_url, p.visibility, p.suspended, p.deleting_at, p.created_at, p.updated_at,
    (SELECT count(*) FROM jobsets j WHERE j.project_id = p.id) AS jobsets,
    p.namespace, p.deletion_policy,
    (SELECT jsonb_build_object('id', m.id, 'source_kind', m.source_kind,
            'source_name', m.source_name, 'path', m.path, 'line', m.line, 'revision', m.revision,
            'conditions', m.conditions)
        FROM managed_resources m
        WHERE m.kind = 'Project' AND m.identity = p.name AND m.owns) AS declared_by
FROM projects p
WHERE (p.name = :name::text OR p.number = :number::bigint OR p.id = :id::uuid)
    AND (p.visibility = 'public' OR :all_projects::boolean OR p.id = ANY(:projects::uuid[]))
ORDER BY p.name = :name::text DESC
LIMIT 1;
