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
        THEN remote_builders.disabled_until END,
    pinned_host_key = CASE WHEN remote_builders.ssh_uri = EXCLUDED.ssh_uri
        THEN remote_builders.pinned_host_key END
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

-- name: list_standing()
-- All that may be sent something, now or later, with how they stand.
SELECT id, name, ssh_uri, systems, max_jobs, speed_factor, supported_features, mandatory_features,
    coalesce(nullif(public_host_key, ''), pinned_host_key, '') AS host_key, namespace,
    coalesce(ssh_key_secret, '') AS ssh_key_secret,
    coalesce(ssh_key_secret_key, '') AS ssh_key_secret_key, enabled, drain, consecutive_failures,
    coalesce(last_error, '') AS last_error,
    greatest(extract(epoch FROM disabled_until - now()), 0)::float8 AS backoff_s,
    test_requested_at
FROM remote_builders
WHERE deleting_at IS NULL
ORDER BY name;

-- name: fetch_room(id)$
-- How many more may run on a builder; others that claim for it wait until we are done.
WITH builder AS (
    SELECT id, max_jobs FROM remote_builders
    WHERE id = :id AND enabled AND NOT drain AND deleting_at IS NULL
        AND (disabled_until IS NULL OR disabled_until <= now())
    FOR NO KEY UPDATE
)
SELECT max_jobs FROM builder;

-- name: count_running(id)$
-- Steps that run on a builder, for whichever scheduler.
SELECT count(*) FROM leases l JOIN tasks t ON t.id = l.task_id WHERE t.builder_id = :id;

-- name: fail(id, message, delays_s, findings)!
-- It can't be used; several that notice the same at once count once. Delays are by failure.
UPDATE remote_builders SET
    consecutive_failures = consecutive_failures + 1,
    last_failure = now(),
    last_error = :message,
    findings = coalesce(:findings::jsonb, findings),
    disabled_until = now() + make_interval(secs => (:delays_s::float8[])[
        least(consecutive_failures + 1, cardinality(:delays_s::float8[]))])
WHERE id = :id AND (disabled_until IS NULL OR disabled_until <= now());

-- name: recover(id)!
-- It can be used again.
UPDATE remote_builders SET consecutive_failures = 0, disabled_until = NULL, last_error = NULL,
    last_seen_at = now()
WHERE id = :id;

-- name: tell(id, findings)!
-- What a look at it found.
UPDATE remote_builders SET tested_at = now(), test_requested_at = NULL, findings = :findings
WHERE id = :id;

-- name: request_test(id)!
-- Have it looked at.
UPDATE remote_builders SET test_requested_at = now() WHERE id = :id;

-- name: pin(id, host_key)!
-- Trust a host key from now on, and try again at once.
UPDATE remote_builders SET pinned_host_key = :host_key, consecutive_failures = 0,
    disabled_until = NULL
WHERE id = :id;
