-- name: list_config_repositories(after_name, page_size)
-- Config repositories by name, with what each owns.
SELECT r.id, r.name, r.kind, r.url, r.branch, r.path, r.interval_s, r.prune, r.suspended,
    r.deleting_at, r.bootstrap, r.last_revision, r.last_synced_at, r.next_sync_at,
    r.sync_failures, r.confirmed_revision, r.conditions, r.created_at, r.updated_at,
    (SELECT count(*) FROM managed_resources m WHERE m.source_kind = 'ConfigRepository'
        AND m.source_name = r.name AND m.owns) AS resources,
    (SELECT count(*) FROM source_problems x WHERE x.source_kind = 'ConfigRepository'
        AND x.source_name = r.name) AS problems
FROM config_repositories r
WHERE :after_name::text IS NULL OR r.name > :after_name::text
ORDER BY r.name
LIMIT :page_size::int;

-- name: fetch(name, id)^
-- One config repository.
SELECT r.id, r.name, r.kind, r.url, r.branch, r.path, r.interval_s, r.prune, r.suspended,
    r.deleting_at, r.bootstrap, r.last_revision, r.last_synced_at, r.next_sync_at,
    r.sync_failures, r.confirmed_revision, r.conditions, r.created_at, r.updated_at,
    (SELECT count(*) FROM managed_resources m WHERE m.source_kind = 'ConfigRepository'
        AND m.source_name = r.name AND m.owns) AS resources,
    (SELECT count(*) FROM source_problems x WHERE x.source_kind = 'ConfigRepository'
        AND x.source_name = r.name) AS problems,
    r.last_tree, r.namespace,
    coalesce((SELECT jsonb_agg(x.problem ORDER BY x.nr) FROM (SELECT y.nr, y.problem
        FROM source_problems y WHERE y.source_kind = 'ConfigRepository'
            AND y.source_name = r.name ORDER BY y.nr LIMIT 200) x), '[]') AS problem_list
FROM config_repositories r
WHERE r.name = :name::text OR r.id = :id::uuid
ORDER BY r.name = :name::text DESC
LIMIT 1;
