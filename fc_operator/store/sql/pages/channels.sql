-- name: list_channels(project, after_project, after_name, all_projects, projects, page_size)
-- Channels by project and name, and where each points.
SELECT c.id, p.name AS project, c.name, j.name AS jobset, c.current_evaluation_id,
    e.number AS current_evaluation, e.commit_hash, c.promoted_at, c.created_at, c.updated_at
FROM channels c
JOIN projects p ON p.id = c.project_id
JOIN jobsets j ON j.id = c.jobset_id
LEFT JOIN evaluations e ON e.id = c.current_evaluation_id
WHERE (p.visibility = 'public' OR :all_projects::boolean OR p.id = ANY(:projects::uuid[]))
    AND (:project::uuid IS NULL OR c.project_id = :project::uuid)
    AND (:after_project::text IS NULL
        OR (p.name, c.name) > (:after_project::text, :after_name::text))
ORDER BY p.name, c.name
LIMIT :page_size::int;

-- name: fetch(id, project, name, all_projects, projects)^
-- One channel, by id or by project and name.
SELECT c.id, p.name AS project, c.name, j.name AS jobset, c.current_evaluation_id,
    e.number AS current_evaluation, e.commit_hash, c.promoted_at, c.created_at, c.updated_at
FROM channels c
JOIN projects p ON p.id = c.project_id
JOIN jobsets j ON j.id = c.jobset_id
LEFT JOIN evaluations e ON e.id = c.current_evaluation_id
WHERE (p.visibility = 'public' OR :all_projects::boolean OR p.id = ANY(:projects::uuid[]))
    AND (c.id = :id::uuid OR (p.name = :project::text AND c.name = :name::text));
