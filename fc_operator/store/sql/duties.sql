-- name: holds(name, owner)$
-- Whether a duty is this owner's now. Not locked: that would hold up its own renewal.
SELECT true FROM duty_leases
WHERE name = :name AND owner = :owner AND expires_at >= clock_timestamp();

-- name: seize(name, owner, lease_s)!
-- Take a duty away from whoever has it.
INSERT INTO duty_leases (name, owner, expires_at)
VALUES (:name, :owner, now() + make_interval(secs => :lease_s::float8))
ON CONFLICT (name) DO UPDATE
SET owner = excluded.owner, expires_at = excluded.expires_at,
    epoch = duty_leases.epoch + (duty_leases.owner <> excluded.owner)::int;
