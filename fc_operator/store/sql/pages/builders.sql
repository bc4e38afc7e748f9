-- name: list_builders(after_name, page_size)
-- Builders by name, with what runs on each.
SELECT w.id, w.name, w.ssh_uri, w.systems, w.max_jobs, w.speed_factor, w.supported_features,
    w.mandatory_features, w.public_host_key, w.enabled, w.drain, w.deleting_at,
    w.pinned_host_key, w.consecutive_failures, w.disabled_until, w.last_failure, w.last_error,
    w.last_seen_at, w.test_requested_at, w.tested_at, w.findings,
    w.created_at, w.updated_at,
    (SELECT count(*) FROM tasks t JOIN leases l ON l.task_id = t.id
        WHERE t.builder_id = w.id AND t.state = 'live') AS running
FROM remote_builders w
WHERE :after_name::text IS NULL OR w.name > :after_name::text
ORDER BY w.name
LIMIT :page_size::int;

-- name: fetch(name, id)^
-- One builder with who declares it.
SELECT w.id, w.name, w.ssh_uri, w.systems, w.max_jobs, w.speed_factor, w.supported_features,
    w.mandatory_features, w.public_host_key, w.enabled, w.drain, w.deleting_at,
    w.pinned_host_key, w.consecutive_failures, w.disabled_until, w.last_failure, w.last_error,
    w.last_seen_at, w.test_requested_at, w.tested_at, w.findings,
    w.created_at, w.updated_at,
    (SELECT count(*) FROM tasks t JOIN leases l ON l.task_id = t.id
        WHERE t.builder_id = w.id AND t.state = 'live') AS running,
    (SELECT jsonb_build_object('id', m.id, 'source_kind', m.source_kind,
            'source_name', m.source_name, 'path', m.path, 'line', m.line, 'revision', m.revision,
            'conditions', m.conditions)
        FROM managed_resources m
        WHERE m.kind = 'RemoteBuilder' AND m.identity = w.name AND m.owns) AS declared_by
FROM remote_builders w
WHERE w.name = :name::text OR w.id = :id::uuid
ORDER BY w.name = :name::text DESC
LIMIT 1;

-- name: list_machines()
-- Machines that build by themselves: processes that are alive, with what they said of themselves.
SELECT h.owner, h.kind, h.host, h.started_at, h.seen_at, h.info,
    (SELECT count(*) FROM leases l WHERE l.owner = h.owner) AS running
FROM service_heartbeats h
WHERE h.seen_at > now() - interval '1 minute'
ORDER BY h.kind, h.host, h.owner
LIMIT 200;
