-- name: fetch_of_build(build_id, attempt)^
-- Where the log of a build's step is: one attempt, and whether more comes. By default the newest;
-- if that found everything built, the last one that was cut off, for it did the work.
SELECT b.status, b.status_reason, s.attempt AS newest, s.id AS step_id, a.attempt,
    a.ended_at IS NOT NULL AS ended, a.log_key, a.log_bytes,
    coalesce((SELECT c.start_offset + octet_length(c.data) FROM log_chunks c
        WHERE c.step_id = a.step_id AND c.attempt = a.attempt
        ORDER BY c.start_offset DESC LIMIT 1), 0) AS chunk_end
FROM builds b
LEFT JOIN steps s ON s.id = b.step_id
LEFT JOIN LATERAL (SELECT * FROM attempts t
    WHERE t.step_id = s.id AND coalesce(t.attempt = :attempt::int,
        t.attempt = s.attempt OR t.status IN ('lost', 'aborted'))
    ORDER BY t.reason = 'AlreadyValid', t.attempt DESC LIMIT 1) a ON true
WHERE b.id = :build_id::uuid;

-- name: fetch_of_step(step_id, attempt)^
-- The same for a step by itself.
SELECT s.status, s.status_reason, s.attempt AS newest, s.id AS step_id, a.attempt,
    a.ended_at IS NOT NULL AS ended, a.log_key, a.log_bytes,
    coalesce((SELECT c.start_offset + octet_length(c.data) FROM log_chunks c
        WHERE c.step_id = a.step_id AND c.attempt = a.attempt
        ORDER BY c.start_offset DESC LIMIT 1), 0) AS chunk_end
FROM steps s
LEFT JOIN LATERAL (SELECT * FROM attempts t
    WHERE t.step_id = s.id AND coalesce(t.attempt = :attempt::int,
        t.attempt = s.attempt OR t.status IN ('lost', 'aborted'))
    ORDER BY t.reason = 'AlreadyValid', t.attempt DESC LIMIT 1) a ON true
WHERE s.id = :step_id::bigint;

-- name: list_chunks(step_id, attempt, start, rows)
-- Chunks from the one that holds the byte at an offset.
SELECT c.start_offset, c.data
FROM log_chunks c
WHERE c.step_id = :step_id::bigint AND c.attempt = :attempt::int
    AND c.start_offset >= coalesce((SELECT max(f.start_offset) FROM log_chunks f
        WHERE f.step_id = :step_id::bigint AND f.attempt = :attempt::int
            AND f.start_offset <= :start::bigint), 0)
ORDER BY c.start_offset
LIMIT :rows::int;
