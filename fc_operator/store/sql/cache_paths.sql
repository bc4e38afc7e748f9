-- name: list_paths(hash_parts)
-- Paths by their hash parts, and who may read them: who has a path's derivation has the path.
SELECT c.store_path, c.nar_hash, c.nar_size, c.file_hash, c.file_size, c.object_key,
    c.reference_names, c.deriver, c.content_address, c.signatures,
    coalesce(l.projects, '{}') AS projects, coalesce(l.is_public, false) AS is_public
FROM cache_paths c
LEFT JOIN LATERAL (
    SELECT array_agg(DISTINCT p.id) AS projects,
        bool_or(coalesce(p.cache_public, p.visibility = 'public')) AS is_public
    FROM cache_path_projects cp JOIN projects p ON p.id = cp.project_id
    WHERE cp.hash_part IN (c.hash_part, left(c.deriver, 32))
) l ON true
WHERE c.hash_part = ANY (:hash_parts::text[]);

-- name: fetch_of_file(file_hash, all_projects, projects, is_known)^
-- One of the paths whose NAR is a file of the object store, if the reader may read one. Many may
-- share a file: that of an empty file, say.
SELECT c.nar_hash, c.nar_size, c.file_hash, c.file_size, c.object_key
FROM cache_paths c
WHERE c.file_hash = :file_hash
    AND (:all_projects::bool
        OR EXISTS (
            SELECT 1 FROM cache_path_projects cp JOIN projects p ON p.id = cp.project_id
            WHERE cp.hash_part IN (c.hash_part, left(c.deriver, 32))
                AND (p.id = ANY (:projects::uuid[])
                    OR coalesce(p.cache_public, p.visibility = 'public')))
        OR (:is_known::bool AND NOT EXISTS (
            SELECT 1 FROM cache_path_projects cp
            WHERE cp.hash_part IN (c.hash_part, left(c.deriver, 32)))))
LIMIT 1;

-- name: list_by_path(store_paths)
-- What is registered of some paths.
SELECT store_path, nar_hash, nar_size, object_key
FROM cache_paths WHERE store_path = ANY (:store_paths::text[]);

-- name: list_known(hash_parts)
-- Those of some hash parts that the cache has.
SELECT hash_part, store_path FROM cache_paths WHERE hash_part = ANY (:hash_parts::text[]);

-- name: insert_nar(uploaded_by, upload_hash, compression, nar_hash, nar_size, flat_hash, file_hash, file_size, object_key)!
-- A NAR that was verified; the same upload once more changes nothing.
INSERT INTO cache_nars (uploaded_by, upload_hash, compression, nar_hash, nar_size, flat_hash,
    file_hash, file_size, object_key)
VALUES (:uploaded_by, :upload_hash, :compression, :nar_hash, :nar_size, :flat_hash,
    :file_hash, :file_size, :object_key)
ON CONFLICT (uploaded_by, upload_hash, compression) DO UPDATE
SET nar_hash = excluded.nar_hash, nar_size = excluded.nar_size, flat_hash = excluded.flat_hash,
    file_hash = excluded.file_hash, file_size = excluded.file_size,
    object_key = excluded.object_key;

-- name: fetch_nar(uploaded_by, upload_hash, compression)^
-- A NAR that somebody brought before.
SELECT nar_hash, nar_size, flat_hash, file_hash, file_size, object_key
FROM cache_nars
WHERE uploaded_by = :uploaded_by AND upload_hash = :upload_hash AND compression = :compression;

-- name: insert_path(hash_part, store_path, nar_hash, nar_size, file_hash, file_size, object_key, reference_names, deriver, content_address, signatures, uploaded_by)^
-- A path that was verified; the first one stays.
INSERT INTO cache_paths (hash_part, store_path, nar_hash, nar_size, file_hash, file_size,
    object_key, reference_names, deriver, content_address, signatures, uploaded_by)
VALUES (:hash_part, :store_path, :nar_hash, :nar_size, :file_hash, :file_size,
    :object_key, :reference_names::text[], :deriver, :content_address, :signatures::text[],
    :uploaded_by)
ON CONFLICT DO NOTHING
RETURNING hash_part;

-- name: fetch_registered(hash_part)^
-- What stands under a hash part already.
SELECT store_path, nar_hash, reference_names FROM cache_paths WHERE hash_part = :hash_part;

-- name: link_projects(hash_part, project_ids)!
-- These projects had the path too.
INSERT INTO cache_path_projects (hash_part, project_id)
SELECT :hash_part, p.id FROM projects p WHERE p.id = ANY (:project_ids::uuid[])
ON CONFLICT DO NOTHING;

-- name: fetch_task(task_id)^
-- A task that lives, with its token hashes and the project that it works for.
SELECT t.id, t.kind, t.fetch_token_hash, t.work_token_hash,
    coalesce(ej.project_id, sj.project_id) AS project_id
FROM tasks t
LEFT JOIN evaluations e ON e.id = t.evaluation_id
LEFT JOIN jobsets ej ON ej.id = e.jobset_id
LEFT JOIN LATERAL (
    SELECT j.project_id FROM leases l
    JOIN steps s ON s.id = l.step_id
    JOIN jobsets j ON j.id = s.jobset_id
    WHERE l.task_id = t.id ORDER BY l.step_id LIMIT 1
) sj ON true
WHERE t.id = :task_id::uuid AND t.state = 'live' AND t.expires_at > now();

-- name: hold_task(task_id)^
-- Whether a task still lives; it does until this transaction ends.
SELECT id FROM tasks
WHERE id = :task_id::uuid AND state = 'live' AND expires_at > now()
FOR SHARE;

-- name: fetch_own_output(task_id, store_path)^
-- The step of a task of which a path is an output; its lease stays until this transaction ends.
SELECT s.id, s.drv_path
FROM leases l
JOIN step_outputs o ON o.step_id = l.step_id
JOIN steps s ON s.id = l.step_id
WHERE l.task_id = :task_id::uuid AND o.path = :store_path AND l.expires_at > now()
LIMIT 1
FOR SHARE OF l;

-- name: list_projects_of_step(step_id)
-- Projects that want a step.
SELECT j.project_id FROM steps s JOIN jobsets j ON j.id = s.jobset_id WHERE s.id = :step_id
UNION
SELECT j.project_id FROM builds b
JOIN evaluations e ON e.id = b.evaluation_id
JOIN jobsets j ON j.id = e.jobset_id
WHERE b.step_id = :step_id;

-- name: fetch_log_step(drv_path, all_projects, projects)^
-- The step of a derivation, if the reader may see a project that wants it.
SELECT s.id
FROM steps s
WHERE s.drv_path = :drv_path
    AND (:all_projects::bool
        OR EXISTS (
            SELECT 1 FROM jobsets j JOIN projects p ON p.id = j.project_id
            WHERE j.id = s.jobset_id AND (p.id = ANY (:projects::uuid[])
                OR coalesce(p.cache_public, p.visibility = 'public')))
        OR EXISTS (
            SELECT 1 FROM builds b
            JOIN evaluations e ON e.id = b.evaluation_id
            JOIN jobsets j ON j.id = e.jobset_id
            JOIN projects p ON p.id = j.project_id
            WHERE b.step_id = s.id AND (p.id = ANY (:projects::uuid[])
                OR coalesce(p.cache_public, p.visibility = 'public'))));

-- name: fetch_totals()^
-- How much the cache holds.
SELECT count(*) AS paths, coalesce(sum(nar_size), 0)::bigint AS nar_bytes,
    coalesce(sum(file_size), 0)::bigint AS file_bytes
FROM cache_paths;

-- name: list_unsigned(age_s, skipped, limit)
-- Builds that ended well a while ago at most, whose outputs are not known to be in the cache.
SELECT b.id, j.project_id, b.completed_at,
    ARRAY(SELECT o.value FROM jsonb_each_text(b.outputs) o WHERE o.value IS NOT NULL) AS paths
FROM builds b
JOIN evaluations e ON e.id = b.evaluation_id
JOIN jobsets j ON j.id = e.jobset_id
WHERE NOT b.signed AND b.status IN ('succeeded', 'failed_with_output')
    AND b.completed_at > now() - make_interval(secs => :age_s::float8)
    AND jsonb_typeof(b.outputs) = 'object' AND b.id <> ALL (:skipped::uuid[])
ORDER BY b.completed_at DESC
LIMIT :limit::int;

-- name: mark_signed(build_ids)
-- Builds of which the cache has all outputs; their project may read these.
WITH whole AS (
    SELECT b.id FROM builds b
    WHERE b.id = ANY (:build_ids::uuid[]) AND NOT b.signed
        AND NOT EXISTS (
            SELECT 1 FROM jsonb_each_text(b.outputs) o
            WHERE o.value IS NULL OR NOT EXISTS (
                SELECT 1 FROM cache_paths c WHERE c.store_path = o.value))
), linked AS (
    INSERT INTO cache_path_projects (hash_part, project_id)
    SELECT DISTINCT c.hash_part, j.project_id
    FROM whole w
    JOIN builds b ON b.id = w.id
    JOIN evaluations e ON e.id = b.evaluation_id
    JOIN jobsets j ON j.id = e.jobset_id
    CROSS JOIN LATERAL jsonb_each_text(b.outputs) o
    JOIN cache_paths c ON c.store_path = o.value
    ON CONFLICT DO NOTHING
)
UPDATE builds b SET signed = true FROM whole w WHERE b.id = w.id
RETURNING b.id;
