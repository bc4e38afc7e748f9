-- name: list_by_name(names)
-- The rows of some builders.
SELECT id, name, ssh_uri, systems, max_jobs, speed_factor, supported_features, mandatory_features,
    enabled, coalesce(public_host_key, '') AS public_host_key, namespace, ssh_key_secret,
    ssh_key_secret_key, drain, deleting_at IS NOT NULL AS deleting
FROM remote_builders
WHERE name = ANY(:names::text[]);

-- name: upsert(rows)
-- Brings rows of builders to what was declared; another address forgets the old one's failures.
INSERT INTO remote_builders (id, name, ssh_uri, systems, max_jobs, speed_factor,
    supported_features, mandatory_features, enabled, public_host_key, namespace, ssh_key_secret,
    ssh_key_secret_key, drain)
SELECT r.id, r.name, r.ssh_uri, r.systems, r.max_jobs, r.speed_factor, r.supported_features,
    r.mandatory_features, r.enabled, r.public_host_key, r.namespace, r.ssh_key_secret,
    r.ssh_key_secret_key, r.drain
FROM jsonb_to_recordset(:rows::jsonb) AS r (id uuid, name text, ssh_uri text, systems text[],
    max_jobs integer, speed_factor integer, supported_features text[], mandatory_features text[],
    enabled boolean, public_host_key text, namespace text, ssh_key_secret text,
    ssh_key_secret_key text, drain boolean)
ORDER BY r.name
ON CONFLICT (name) DO UPDATE SET
    ssh_uri = EXCLUDED.ssh_uri, systems = EXCLUDED.systems, max_jobs = EXCLUDED.max_jobs,
    speed_factor = EXCLUDED.speed_factor, supported_features = EXCLUDED.supported_features,
    mandatory_features = EXCLUDED.mandatory_features, enabled = EXCLUDED.enabled,
    public_host_key = EXCLUDED.public_host_key, namespace = EXCLUDED.namespace,
    ssh_key_secret = EXCLUDED.ssh_key_secret, ssh_key_secret_key = EXCLUDED.ssh_key_secret_key,
    drain = EXCLUDED.drain, deleting_at = NULL,
    consecutive_failures = CASE WHEN remote_builders.ssh_uri = EXCLUDED.ssh_uri
        THEN remote_builders.consecutive_failures ELSE 0 END,
    disabled_until = CASE WHEN remote_builders.ssh_uri = EXCLUDED.ssh_uri
        THEN remote_builders.disabled_until END
RETURNING id, name;

-- name: request(names)!
-- A try now was asked for: what kept them waiting is forgotten.
UPDATE remote_builders SET consecutive_failures = 0, disabled_until = NULL
WHERE name = ANY(:names::text[]);

-- name: mark_deleting(names)!
-- First phase of pruning: nothing is sent to them any more.
UPDATE remote_builders SET deleting_at = now()
WHERE name = ANY(:names::text[]) AND deleting_at IS NULL;

-- name: delete(ids)!
-- Second phase; what they built keeps their name.
DELETE FROM remote_builders WHERE id = ANY(:ids::uuid[]) AND deleting_at IS NOT NULL;
