-- name: fetch_heartbeat(kinds)^
-- How long ago a process of this kind was last seen alive; NULL if never.
SELECT extract(epoch FROM now() - max(seen_at))::double precision AS seen_s_ago
FROM service_heartbeats
WHERE kind = ANY(:kinds::text[]);
