-- name: lock()$
-- One reconcile at a time in the whole installation, until commit; returns the database's time.
SELECT now() FROM (SELECT pg_advisory_xact_lock(hashtextextended('fc.reconcile', 0))) AS held;

-- name: clock()$
-- The database's time.
SELECT now();

-- name: list_concerned(source_kind, source_name, place_kinds, namespaces, names, kinds, identities)
-- Rows of a source, all or some by place, and the owners of what it declares.
SELECT id, source_kind, source_name, kind, namespace, name, identity, owns, object_id, path, line,
    uid, revision, spec_hash, generation, observed_generation, last_handled_request, conditions,
    pruning_since
FROM managed_resources
WHERE source_kind = :source_kind AND source_name = :source_name
    AND (:names::text[] IS NULL OR (kind, namespace, name) IN (
        SELECT u.kind, u.namespace, u.name
        FROM unnest(:place_kinds::text[], :namespaces::text[], :names::text[])
            AS u (kind, namespace, name)))
UNION
SELECT m.id, m.source_kind, m.source_name, m.kind, m.namespace, m.name, m.identity, m.owns,
    m.object_id, m.path, m.line, m.uid, m.revision, m.spec_hash, m.generation,
    m.observed_generation, m.last_handled_request, m.conditions, m.pruning_since
FROM managed_resources m
JOIN unnest(:kinds::text[], :identities::text[]) AS u (kind, identity)
    ON m.kind = u.kind AND m.identity = u.identity
WHERE m.owns;

-- name: list_waiting(source_kind, source_name)
-- Declarations of other sources that wait for an owner to leave or a reference to come.
SELECT id, source_kind, source_name, kind, namespace, name, identity, owns, object_id, path, line,
    uid, revision, spec_hash, generation, observed_generation, last_handled_request, conditions,
    pruning_since, spec
FROM managed_resources
WHERE (source_kind <> :source_kind OR source_name <> :source_name)
    AND pruning_since IS NULL
    AND (conditions @> '[{"type": "Ready", "reason": "ReferenceNotFound"}]'
        OR conditions @> '[{"type": "Ready", "reason": "ReferenceNotPermitted"}]'
        OR conditions @> '[{"type": "Ready", "reason": "OwnedByOther"}]');

-- name: list_waiting_of_source(source_kind, source_name)
-- Declarations of one source that wait for an owner to leave or a reference to come.
SELECT id, source_kind, source_name, kind, namespace, name, identity, owns, object_id, path, line,
    uid, revision, spec_hash, generation, observed_generation, last_handled_request, conditions,
    pruning_since, spec
FROM managed_resources
WHERE source_kind = :source_kind AND source_name = :source_name AND pruning_since IS NULL
    AND (conditions @> '[{"type": "Ready", "reason": "ReferenceNotFound"}]'
        OR conditions @> '[{"type": "Ready", "reason": "ReferenceNotPermitted"}]'
        OR conditions @> '[{"type": "Ready", "reason": "OwnedByOther"}]'
        OR conditions @> '[{"type": "Ready", "reason": "SecretNotFound"}]');

-- name: list_of_source(source_kind, source_name)
-- All rows of a source with what they say.
SELECT id, source_kind, source_name, kind, namespace, name, identity, owns, object_id, path, line,
    uid, revision, spec_hash, generation, observed_generation, last_handled_request, conditions,
    pruning_since, spec
FROM managed_resources
WHERE source_kind = :source_kind AND source_name = :source_name
ORDER BY id;

-- name: list_project_owners(names)
-- Those of some projects that exist, and the source that owns each, if one does.
SELECT p.id, p.name, m.source_kind, m.source_name
FROM projects p
LEFT JOIN managed_resources m ON m.kind = 'Project' AND m.identity = p.name AND m.owns
WHERE p.name = ANY(:names::text[]);

-- name: list_specs(ids)
-- What some rows say.
SELECT id, spec FROM managed_resources WHERE id = ANY(:ids::uuid[]);

-- name: upsert(rows)!
-- Writes whole rows, by id.
INSERT INTO managed_resources (id, source_kind, source_name, kind, namespace, name, identity, owns,
    object_id, path, line, uid, revision, spec_hash, spec, generation, observed_generation,
    last_handled_request, conditions, pruning_since)
SELECT r.id, r.source_kind, r.source_name, r.kind, r.namespace, r.name, r.identity, r.owns,
    r.object_id, r.path, r.line, r.uid, r.revision, r.spec_hash, coalesce(r.spec, '{}'),
    r.generation, r.observed_generation, r.last_handled_request, r.conditions, r.pruning_since
FROM jsonb_to_recordset(:rows::jsonb) AS r (id uuid, source_kind text, source_name text, kind text,
    namespace text, name text, identity text, owns boolean, object_id uuid, path text, line integer,
    uid text, revision text, spec_hash text, spec jsonb, generation bigint,
    observed_generation bigint, last_handled_request text, conditions jsonb,
    pruning_since timestamptz)
ORDER BY r.id
ON CONFLICT (id) DO UPDATE SET
    namespace = EXCLUDED.namespace, name = EXCLUDED.name, identity = EXCLUDED.identity,
    owns = EXCLUDED.owns, object_id = EXCLUDED.object_id, path = EXCLUDED.path,
    line = EXCLUDED.line, uid = EXCLUDED.uid, revision = EXCLUDED.revision,
    spec_hash = EXCLUDED.spec_hash,
    spec = CASE WHEN EXCLUDED.spec = '{}' THEN managed_resources.spec ELSE EXCLUDED.spec END,
    generation = EXCLUDED.generation, observed_generation = EXCLUDED.observed_generation,
    last_handled_request = EXCLUDED.last_handled_request, conditions = EXCLUDED.conditions,
    pruning_since = EXCLUDED.pruning_since;

-- name: delete(ids)!
-- Rows whose claim is over.
DELETE FROM managed_resources WHERE id = ANY(:ids::uuid[]);

-- name: list_overdue(grace_s, size)
-- The oldest rows whose grace time is over.
SELECT id, source_kind, source_name, kind, namespace, name, identity, owns, object_id, path, line,
    uid, revision, spec_hash, generation, observed_generation, last_handled_request, conditions,
    pruning_since
FROM managed_resources
WHERE pruning_since IS NOT NULL AND pruning_since <= now() - make_interval(secs => :grace_s)
ORDER BY pruning_since, id
LIMIT :size;

-- name: list_sources(source_kind)
-- The names of all sources of a kind that have rows.
SELECT DISTINCT source_name FROM managed_resources WHERE source_kind = :source_kind
ORDER BY source_name;

-- name: next_overdue_s(grace_s)$
-- Seconds until the next row's grace time is over; NULL when none is being pruned.
SELECT extract(epoch FROM min(pruning_since) + make_interval(secs => :grace_s) - now())::float8
FROM managed_resources
WHERE pruning_since IS NOT NULL;

-- name: list_problems(source_kind, source_name)
-- What is wrong with the files of a source, in order.
SELECT problem FROM source_problems
WHERE source_kind = :source_kind AND source_name = :source_name
ORDER BY nr;

-- name: delete_problems(source_kind, source_name, from_nr)!
-- Problems beyond those that remain.
DELETE FROM source_problems
WHERE source_kind = :source_kind AND source_name = :source_name AND nr >= :from_nr;

-- name: upsert_problems(source_kind, source_name, problems)!
-- The problems of a source by their place in the list; equal ones are not written again.
INSERT INTO source_problems (source_kind, source_name, nr, problem)
SELECT :source_kind, :source_name, u.nr - 1, u.problem
FROM jsonb_array_elements(:problems::jsonb) WITH ORDINALITY AS u (problem, nr)
ON CONFLICT (source_kind, source_name, nr) DO UPDATE SET problem = EXCLUDED.problem
WHERE source_problems.problem IS DISTINCT FROM EXCLUDED.problem;

-- name: hold_pruning(id)$
-- Whether a row still is on its way out, locked until commit.
SELECT true FROM managed_resources WHERE id = :id AND pruning_since IS NOT NULL FOR UPDATE;

-- name: start_pruning_of_source(source_kind, source_name)
-- All that a source owned goes with it; rows without an object go at once.
UPDATE managed_resources SET pruning_since = now()
WHERE source_kind = :source_kind AND source_name = :source_name AND owns AND pruning_since IS NULL
RETURNING kind, identity;

-- name: delete_of_source(source_kind, source_name, owned)!
-- The rows of a source that is gone; with `owned` also those whose objects stay in force.
DELETE FROM managed_resources
WHERE source_kind = :source_kind AND source_name = :source_name AND (:owned OR NOT owns);
