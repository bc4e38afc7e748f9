-- name: list_by_name(names)
-- The rows of some config repositories that manifests declare.
SELECT id, name, namespace, url, branch, path, interval_s, prune, credentials_secret, suspended,
    deleting_at IS NOT NULL AS deleting
FROM config_repositories
WHERE name = ANY(:names::text[]) AND NOT bootstrap;

-- name: upsert(rows)
-- Brings rows to what was declared; each is due now.
INSERT INTO config_repositories (id, name, namespace, kind, url, branch, path, interval_s, prune,
    credentials_secret, suspended)
SELECT r.id, r.name, r.namespace, 'git', r.url, r.branch, r.path, r.interval_s, r.prune,
    r.credentials_secret, r.suspended
FROM jsonb_to_recordset(:rows::jsonb) AS r (id uuid, name text, namespace text, url text,
    branch text, path text, interval_s integer, prune boolean, credentials_secret text,
    suspended boolean)
ORDER BY r.name
ON CONFLICT (name) DO UPDATE SET
    namespace = EXCLUDED.namespace, url = EXCLUDED.url, branch = EXCLUDED.branch,
    path = EXCLUDED.path, interval_s = EXCLUDED.interval_s, prune = EXCLUDED.prune,
    credentials_secret = EXCLUDED.credentials_secret, suspended = EXCLUDED.suspended,
    deleting_at = NULL, next_sync_at = now(), sync_failures = 0,
    -- What was said of another place says nothing of this one.
    conditions = CASE WHEN (config_repositories.url, config_repositories.branch,
            config_repositories.path) IS DISTINCT FROM (EXCLUDED.url, EXCLUDED.branch, EXCLUDED.path)
        THEN '[]' ELSE config_repositories.conditions END
WHERE NOT config_repositories.bootstrap
RETURNING id, name;

-- name: request(names)
-- A sync now was asked for. Returns those that exist and are not on their way out.
UPDATE config_repositories SET next_sync_at = now(), sync_failures = 0
WHERE name = ANY(:names::text[]) AND deleting_at IS NULL
RETURNING name;

-- name: confirm(name, revision)$
-- The pruning that a revision asks for may go on. Returns the name if there is such a source.
UPDATE config_repositories SET confirmed_revision = :revision, next_sync_at = now()
WHERE name = :name AND deleting_at IS NULL
RETURNING name;

-- name: mark_deleting(names)!
-- First phase of pruning: they are synced no more.
UPDATE config_repositories SET deleting_at = now()
WHERE name = ANY(:names::text[]) AND deleting_at IS NULL AND NOT bootstrap;

-- name: delete(id)$
-- Second phase. Returns whether what it declared goes too.
DELETE FROM config_repositories WHERE id = :id AND deleting_at IS NOT NULL AND NOT bootstrap
RETURNING prune;

-- name: upsert_bootstrap(name, kind, url, branch, path, interval_s, credentials_secret)$
-- The source of `fc up --config`, due now; it is never pruned and has no manifest.
INSERT INTO config_repositories (name, kind, url, branch, path, interval_s, credentials_secret,
    bootstrap)
VALUES (:name, :kind, :url, :branch, :path, :interval_s, :credentials_secret, true)
ON CONFLICT (name) DO UPDATE SET
    kind = EXCLUDED.kind, url = EXCLUDED.url, branch = EXCLUDED.branch, path = EXCLUDED.path,
    interval_s = EXCLUDED.interval_s, credentials_secret = EXCLUDED.credentials_secret,
    bootstrap = true, suspended = false, deleting_at = NULL,
    next_sync_at = now(), sync_failures = 0
RETURNING id;

-- name: suspend_bootstrap(name)!
-- `fc up` runs without a config source this time: what it declared stays as it is.
UPDATE config_repositories SET suspended = true WHERE name = :name AND bootstrap AND NOT suspended;

-- name: claim(owner, lease_s, size)
-- Sources that are due, held by one process each; one on its way out is not read any more.
UPDATE config_repositories c
SET lease_owner = :owner, lease_until = now() + make_interval(secs => :lease_s)
FROM (
    SELECT id FROM config_repositories
    WHERE next_sync_at <= now() AND NOT suspended AND deleting_at IS NULL
        AND (lease_until IS NULL OR lease_until < now())
    ORDER BY next_sync_at, id
    LIMIT :size
    FOR UPDATE SKIP LOCKED
) AS due
WHERE c.id = due.id
RETURNING c.id, c.name, c.namespace, c.kind, c.url, c.branch, c.path, c.interval_s, c.prune,
    c.credentials_secret, c.last_revision, c.last_tree, c.sync_failures,
    c.confirmed_revision, c.conditions, c.next_sync_at, c.bootstrap;

-- name: renew(id, owner, lease_s)$
-- Whether the lease still holds; it is longer now.
UPDATE config_repositories SET lease_until = now() + make_interval(secs => :lease_s)
WHERE id = :id AND lease_owner = :owner AND lease_until >= now()
RETURNING true;

-- name: is_held(id, owner, url, path, branch)$
-- Whether the lease still holds; asked inside the transaction that writes what was read, so that
-- a holder that was given up writes nothing.
SELECT true FROM config_repositories
WHERE id = :id AND lease_owner = :owner AND lease_until >= now() AND deleting_at IS NULL
    AND url = :url AND path = :path AND branch IS NOT DISTINCT FROM :branch::text
FOR NO KEY UPDATE;

-- name: finish(id, owner, delay_s, failures, revision, tree, conditions, synced, claimed_due)!
-- The end of a sync; one that was asked for meanwhile (the due time moved) is due at once.
UPDATE config_repositories SET
    lease_owner = NULL, lease_until = NULL,
    next_sync_at = CASE WHEN next_sync_at IS DISTINCT FROM :claimed_due::timestamptz
        THEN next_sync_at ELSE now() + make_interval(secs => :delay_s) END,
    sync_failures = :failures,
    last_revision = coalesce(:revision, last_revision),
    last_tree = coalesce(:tree, last_tree),
    conditions = :conditions,
    last_synced_at = CASE WHEN :synced THEN now() ELSE last_synced_at END,
    confirmed_revision = CASE WHEN confirmed_revision = :revision AND :synced
        THEN NULL ELSE confirmed_revision END
WHERE id = :id AND lease_owner = :owner;

-- name: release(owner)!
-- A process that stops gives up what it held.
UPDATE config_repositories SET lease_owner = NULL, lease_until = NULL WHERE lease_owner = :owner;

-- name: next_due_s()$
-- Seconds until the next sync is due; negative when one is overdue, NULL when there is none.
SELECT extract(epoch FROM min(greatest(next_sync_at, lease_until)) - now())::float8
FROM config_repositories
WHERE NOT suspended AND deleting_at IS NULL;

-- name: list_directories()
-- Folders to watch.
SELECT name, url, path FROM config_repositories
WHERE kind = 'directory' AND NOT suspended AND deleting_at IS NULL
ORDER BY name;
