-- name: fetch_hook_of_project(name, number, id, forge)^
-- The enabled webhook of a project that is not on its way out.
SELECT w.id, w.secret_ciphertext, p.id AS parent_id, p.name AS parent, NULL::text AS branch
FROM webhook_configs w
JOIN projects p ON p.id = w.project_id
WHERE (p.name = :name::text OR p.number = :number::bigint OR p.id = :id::uuid)
    AND w.forge_type = :forge::text AND w.enabled AND p.deleting_at IS NULL
ORDER BY p.name = :name::text DESC
LIMIT 1;

-- name: fetch_hook_of_config_repository(name, forge)^
-- The enabled webhook of a config repository.
SELECT w.id, w.secret_ciphertext, r.id AS parent_id, r.name AS parent, r.branch
FROM webhook_configs w
JOIN config_repositories r ON r.id = w.config_repository_id
WHERE r.name = :name::text AND w.forge_type = :forge::text AND w.enabled
    AND r.deleting_at IS NULL;

-- name: insert(webhook_config_id, delivery_id)^
-- Note a delivery; no row when it was noted within the last 72 h.
INSERT INTO webhook_deliveries (webhook_config_id, delivery_id)
VALUES (:webhook_config_id, :delivery_id)
ON CONFLICT (webhook_config_id, delivery_id) DO UPDATE SET received_at = now()
    WHERE webhook_deliveries.received_at < now() - interval '72 hours'
RETURNING delivery_id;

-- name: match_jobsets(project_id, names, is_default)
-- Jobsets of a project that follow a ref; no branch means the repository's default one.
SELECT j.id, j.name
FROM jobsets j
WHERE j.project_id = :project_id::uuid
    AND j.state <> 'disabled' AND NOT j.suspended AND j.deleting_at IS NULL
    AND (j.branch = ANY(:names::text[]) OR (j.branch IS NULL AND :is_default::boolean))
ORDER BY j.id;
