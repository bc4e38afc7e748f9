-- name: insert(id, name, role, key_hash, prefix, user_id, expires_at)!
-- A new key; its text is nowhere.
INSERT INTO api_keys (id, name, role, key_hash, prefix, user_id, expires_at)
VALUES (:id, :name, :role, :key_hash, :prefix, :user_id, :expires_at);

-- name: fetch_live(key_hash)^
-- The key of this hash if it is still good, with its user's memberships.
SELECT k.id, k.name, k.role,
    k.last_used_at IS NULL OR k.last_used_at < now() - interval '1 minute' AS is_stale,
    ARRAY(SELECT m.project_id FROM project_members m WHERE m.user_id = k.user_id
        ORDER BY m.project_id) AS projects,
    ARRAY(SELECT m.role FROM project_members m WHERE m.user_id = k.user_id
        ORDER BY m.project_id) AS project_roles
FROM api_keys k
LEFT JOIN users u ON u.id = k.user_id
WHERE k.key_hash = :key_hash
    AND k.revoked_at IS NULL
    AND (k.expires_at IS NULL OR k.expires_at > now())
    AND coalesce(u.enabled, true);

-- name: touch(id)!
-- Note the use of a key, at most once a minute.
UPDATE api_keys SET last_used_at = now()
WHERE id = :id AND (last_used_at IS NULL OR last_used_at < now() - interval '1 minute');

-- name: revoke(ref)^
-- End a key, by id or by its shown prefix; the row stays for the audit.
UPDATE api_keys SET revoked_at = coalesce(revoked_at, now())
WHERE id::text = :ref::text OR prefix = :ref::text
RETURNING id, name;

-- name: list_keys(after_created_at, after_id, page_size)
-- Keys, newest first; never a hash.
SELECT k.id, k.name, k.role, k.prefix, u.username AS user, k.created_at, k.last_used_at,
    k.expires_at, k.revoked_at
FROM api_keys k
LEFT JOIN users u ON u.id = k.user_id
WHERE :after_id::uuid IS NULL
    OR (k.created_at, k.id) < (:after_created_at::timestamptz, :after_id::uuid)
ORDER BY k.created_at DESC, k.id DESC
LIMIT :page_size::int;

-- name: fetch_user(username)^
-- The user whom a key shall belong to.
SELECT id FROM users WHERE lower(username) = lower(:username::text);
