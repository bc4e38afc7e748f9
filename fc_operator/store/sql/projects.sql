-- name: list_by_name(names)
-- The rows of some projects.
SELECT id, name, repository_url, display_name, coalesce(description, '') AS description, homepage,
    owner, visibility, namespace, credentials_secret, pods, cache_public, deletion_policy, suspended,
    deleting_at IS NOT NULL AS deleting
FROM projects
WHERE name = ANY(:names::text[]);

-- name: list_notifications(project_ids)
-- Whom some projects tell about results.
SELECT project_id, notification_type, name, config, enabled
FROM notification_configs
WHERE project_id = ANY(:project_ids::uuid[]);

-- name: list_channels(project_ids)
-- The channels of some projects and the jobsets that they follow.
SELECT c.project_id, c.name, j.name AS jobset
FROM channels c
JOIN jobsets j ON j.id = c.jobset_id
WHERE c.project_id = ANY(:project_ids::uuid[]);

-- name: list_members(project_ids)
-- Who may do what in some projects.
SELECT m.project_id, lower(u.username) AS username, m.role
FROM project_members m
JOIN users u ON u.id = m.user_id
WHERE m.project_id = ANY(:project_ids::uuid[]);

-- name: list_jobset_names(names)
-- All jobsets of some projects, by both names.
SELECT p.name AS project, j.name AS jobset
FROM jobsets j
JOIN projects p ON p.id = j.project_id
WHERE p.name = ANY(:names::text[]);

-- name: upsert(rows)
-- Brings rows of projects to what was declared; a row on its way out comes back.
INSERT INTO projects (id, name, repository_url, display_name, description, homepage, owner,
    visibility, namespace, credentials_secret, pods, cache_public, deletion_policy, suspended)
SELECT r.id, r.name, r.repository_url, r.display_name, r.description, r.homepage, r.owner,
    r.visibility, r.namespace, r.credentials_secret, r.pods, r.cache_public, r.deletion_policy, r.suspended
FROM jsonb_to_recordset(:rows::jsonb) AS r (id uuid, name text, repository_url text,
    display_name text, description text, homepage text, owner text, visibility text, namespace text,
    credentials_secret text, pods jsonb, cache_public boolean, deletion_policy text, suspended boolean)
ORDER BY r.name
ON CONFLICT (name) DO UPDATE SET
    repository_url = EXCLUDED.repository_url, display_name = EXCLUDED.display_name,
    description = EXCLUDED.description, homepage = EXCLUDED.homepage, owner = EXCLUDED.owner,
    visibility = EXCLUDED.visibility, namespace = EXCLUDED.namespace,
    credentials_secret = EXCLUDED.credentials_secret, pods = EXCLUDED.pods,
    cache_public = EXCLUDED.cache_public,
    deletion_policy = EXCLUDED.deletion_policy,
    suspended = EXCLUDED.suspended, deleting_at = NULL
RETURNING id, name;

-- name: delete_other_notifications(project_ids, rows)!
-- Targets that are no longer declared.
DELETE FROM notification_configs n
WHERE n.project_id = ANY(:project_ids::uuid[]) AND NOT EXISTS (
    SELECT FROM jsonb_to_recordset(:rows::jsonb) AS r (project_id uuid, type text, name text)
    WHERE r.project_id = n.project_id AND r.type = n.notification_type AND r.name = n.name
);

-- name: upsert_notifications(rows)!
-- Targets as declared; equal ones are not written again.
INSERT INTO notification_configs (project_id, notification_type, name, config, enabled)
SELECT r.project_id, r.type, r.name, r.config, r.enabled
FROM jsonb_to_recordset(:rows::jsonb)
    AS r (project_id uuid, type text, name text, config jsonb, enabled boolean)
ON CONFLICT (project_id, notification_type, name) DO UPDATE SET
    config = EXCLUDED.config, enabled = EXCLUDED.enabled
WHERE (notification_configs.config, notification_configs.enabled)
    IS DISTINCT FROM (EXCLUDED.config, EXCLUDED.enabled);

-- name: insert_users(usernames)!
-- Accounts for members whom nobody made yet: they reserve the name and can't log in.
INSERT INTO users (username, user_type, role)
SELECT u.username, 'local', 'read-only'
FROM unnest(:usernames::text[]) AS u (username)
WHERE NOT EXISTS (SELECT FROM users x WHERE lower(x.username) = lower(u.username))
ON CONFLICT DO NOTHING;

-- name: delete_other_members(project_ids, rows)!
-- Memberships that are no longer declared.
DELETE FROM project_members m
USING users u
WHERE u.id = m.user_id AND m.project_id = ANY(:project_ids::uuid[]) AND NOT EXISTS (
    SELECT FROM jsonb_to_recordset(:rows::jsonb) AS r (project_id uuid, username text)
    WHERE r.project_id = m.project_id AND lower(r.username) = lower(u.username)
);

-- name: upsert_members(rows)!
-- Memberships as declared; equal ones are not written again.
INSERT INTO project_members (project_id, user_id, role)
SELECT r.project_id, u.id, r.role
FROM jsonb_to_recordset(:rows::jsonb) AS r (project_id uuid, username text, role text)
JOIN users u ON lower(u.username) = lower(r.username)
ON CONFLICT (project_id, user_id) DO UPDATE SET role = EXCLUDED.role
WHERE project_members.role IS DISTINCT FROM EXCLUDED.role;

-- name: delete_other_channels(project_ids, rows)!
-- Channels that are no longer declared.
DELETE FROM channels c
WHERE c.project_id = ANY(:project_ids::uuid[]) AND NOT EXISTS (
    SELECT FROM jsonb_to_recordset(:rows::jsonb) AS r (project_id uuid, name text)
    WHERE r.project_id = c.project_id AND r.name = c.name
);

-- name: upsert_channels(rows)!
-- Channels as declared; one that follows another jobset now starts anew.
INSERT INTO channels (project_id, name, jobset_id)
SELECT r.project_id, r.name, j.id
FROM jsonb_to_recordset(:rows::jsonb) AS r (project_id uuid, name text, jobset text)
JOIN jobsets j ON j.project_id = r.project_id AND j.name = r.jobset
ON CONFLICT (project_id, name) DO UPDATE SET
    jobset_id = EXCLUDED.jobset_id, current_evaluation_id = NULL, promoted_at = NULL
WHERE channels.jobset_id IS DISTINCT FROM EXCLUDED.jobset_id;

-- name: mark_deleting(names)!
-- First phase of pruning: nothing is scheduled for them any more.
UPDATE projects SET deleting_at = now() WHERE name = ANY(:names::text[]) AND deleting_at IS NULL;

-- name: fetch_policy(id)$
-- What becomes of a project's history when its manifest goes.
SELECT deletion_policy FROM projects WHERE id = :id;

-- name: delete_empty(id)$
-- Second phase, last act: the row goes when no jobset is left. Returns its id if it went.
DELETE FROM projects p
WHERE p.id = :id AND p.deleting_at IS NOT NULL
    AND NOT EXISTS (SELECT FROM jobsets j WHERE j.project_id = p.id)
RETURNING p.id;
