-- name: list_of_projects(ids)
-- Webhooks of some projects, secrets still encrypted.
SELECT id, project_id AS parent_id, forge_type, secret_name, secret_key, secret_ciphertext, enabled
FROM webhook_configs
WHERE project_id = ANY(:ids::uuid[]);

-- name: list_of_config_repositories(ids)
-- Webhooks of some config repositories, secrets still encrypted.
SELECT id, config_repository_id AS parent_id, forge_type, secret_name, secret_key,
    secret_ciphertext, enabled
FROM webhook_configs
WHERE config_repository_id = ANY(:ids::uuid[]);

-- name: delete_others(parent_ids, kept_ids)!
-- Webhooks of some projects or config repositories that are no longer declared.
DELETE FROM webhook_configs
WHERE (project_id = ANY(:parent_ids::uuid[]) OR config_repository_id = ANY(:parent_ids::uuid[]))
    AND NOT id = ANY(:kept_ids::uuid[]);

-- name: upsert(ids, project_ids, config_repository_ids, forges, names, keys, ciphertexts, enabled)!
-- Webhooks as declared; equal ones are not written again.
INSERT INTO webhook_configs (id, project_id, config_repository_id, forge_type, secret_name,
    secret_key, secret_ciphertext, enabled)
SELECT u.id, u.project_id, u.config_repository_id, u.forge, u.name, u.key, u.ciphertext, u.enabled
FROM unnest(:ids::uuid[], :project_ids::uuid[], :config_repository_ids::uuid[], :forges::text[],
    :names::text[], :keys::text[], :ciphertexts::bytea[], :enabled::boolean[])
    AS u (id, project_id, config_repository_id, forge, name, key, ciphertext, enabled)
ORDER BY u.id
ON CONFLICT (id) DO UPDATE SET
    secret_name = EXCLUDED.secret_name, secret_key = EXCLUDED.secret_key,
    secret_ciphertext = EXCLUDED.secret_ciphertext, enabled = EXCLUDED.enabled
WHERE (webhook_configs.secret_name, webhook_configs.secret_key, webhook_configs.secret_ciphertext,
        webhook_configs.enabled)
    IS DISTINCT FROM (EXCLUDED.secret_name, EXCLUDED.secret_key, EXCLUDED.secret_ciphertext,
        EXCLUDED.enabled);
