-- name: list_by_identity(projects, names)
-- The rows of some jobsets.
SELECT j.id, p.name AS project, j.name, j.nix_expression, j.flake_mode, j.description, j.branch,
    j.check_interval, j.state, j.scheduling_shares, j.keep_nr, j.systems, j.only_build_latest,
    j.timeout_s, j.max_silent_s, j.evaluation_timeout_s, j.allow_import_from_derivation,
    j.suspended, j.deleting_at IS NOT NULL AS deleting
FROM unnest(:projects::text[], :names::text[]) AS u (project, name)
JOIN projects p ON p.name = u.project
JOIN jobsets j ON j.project_id = p.id AND j.name = u.name;

-- name: list_inputs(jobset_ids)
-- The inputs of some jobsets.
SELECT jobset_id, name, input_type, value
FROM jobset_inputs
WHERE jobset_id = ANY(:jobset_ids::uuid[])
ORDER BY jobset_id, name COLLATE "C";

-- name: upsert(rows)
-- Brings rows of jobsets to what was declared; each is due now, and a new generation.
WITH written AS (INSERT INTO jobsets (id, project_id, name, nix_expression, flake_mode, description, branch,
    check_interval, state, scheduling_shares, keep_nr, systems, only_build_latest, timeout_s,
    max_silent_s, evaluation_timeout_s, allow_import_from_derivation, suspended)
SELECT r.id, p.id, r.name, r.nix_expression, r.flake_mode, r.description, r.branch,
    r.check_interval, r.state, r.scheduling_shares, r.keep_nr, r.systems, r.only_build_latest,
    r.timeout_s, r.max_silent_s, r.evaluation_timeout_s, r.allow_import_from_derivation,
    r.suspended
FROM jsonb_to_recordset(:rows::jsonb) AS r (id uuid, project text, name text, nix_expression text,
    flake_mode boolean, description text, branch text, check_interval integer, state text,
    scheduling_shares integer, keep_nr integer, systems text[], only_build_latest boolean,
    timeout_s integer, max_silent_s integer, evaluation_timeout_s integer,
    allow_import_from_derivation boolean, suspended boolean)
JOIN projects p ON p.name = r.project
ORDER BY p.id, r.name
ON CONFLICT (project_id, name) DO UPDATE SET
    nix_expression = EXCLUDED.nix_expression, flake_mode = EXCLUDED.flake_mode,
    description = EXCLUDED.description, branch = EXCLUDED.branch,
    check_interval = EXCLUDED.check_interval, state = EXCLUDED.state,
    scheduling_shares = EXCLUDED.scheduling_shares, keep_nr = EXCLUDED.keep_nr,
    systems = EXCLUDED.systems, only_build_latest = EXCLUDED.only_build_latest,
    timeout_s = EXCLUDED.timeout_s, max_silent_s = EXCLUDED.max_silent_s,
    evaluation_timeout_s = EXCLUDED.evaluation_timeout_s,
    allow_import_from_derivation = EXCLUDED.allow_import_from_derivation,
    suspended = EXCLUDED.suspended, deleting_at = NULL, generation = jobsets.generation + 1,
    next_check_at = now(), check_reason = 'declared', check_failures = 0
RETURNING id, project_id, name)
SELECT w.id, p.name || '/' || w.name AS identity FROM written w JOIN projects p ON p.id = w.project_id;

-- name: delete_other_inputs(jobset_ids, rows)!
-- Inputs that are no longer declared.
DELETE FROM jobset_inputs i
WHERE i.jobset_id = ANY(:jobset_ids::uuid[]) AND NOT EXISTS (
    SELECT FROM jsonb_to_recordset(:rows::jsonb) AS r (jobset_id uuid, name text)
    WHERE r.jobset_id = i.jobset_id AND r.name = i.name
);

-- name: upsert_inputs(rows)!
-- Inputs as declared; equal ones are not written again.
INSERT INTO jobset_inputs (jobset_id, name, input_type, value)
SELECT r.jobset_id, r.name, r.type, r.value
FROM jsonb_to_recordset(:rows::jsonb) AS r (jobset_id uuid, name text, type text, value text)
ON CONFLICT (jobset_id, name) DO UPDATE SET
    input_type = EXCLUDED.input_type, value = EXCLUDED.value, revision = NULL
WHERE (jobset_inputs.input_type, jobset_inputs.value)
    IS DISTINCT FROM (EXCLUDED.input_type, EXCLUDED.value);

-- name: wake_of_projects(projects, anew)!
-- Jobsets of projects whose declaration changed are due; `anew` arms their one shot again.
UPDATE jobsets j
SET next_check_at = now(), check_reason = 'declared', check_failures = 0,
    generation = j.generation + (p.name = ANY(:anew::text[]))::int
FROM projects p
WHERE p.id = j.project_id AND p.name = ANY(:projects::text[]) AND j.deleting_at IS NULL;

-- name: request(projects, names)!
-- A run was asked for by annotation; a jobset name of NULL means all of the project.
UPDATE jobsets j
SET next_check_at = now(), check_reason = 'request'
FROM projects p, unnest(:projects::text[], :names::text[]) AS u (project, name)
WHERE p.id = j.project_id AND p.name = u.project AND (u.name IS NULL OR j.name = u.name)
    AND j.deleting_at IS NULL;

-- name: mark_deleting(projects, names)!
-- First phase of pruning: nothing is scheduled for them any more.
UPDATE jobsets j SET deleting_at = now(), next_check_at = NULL
FROM projects p, unnest(:projects::text[], :names::text[]) AS u (project, name)
WHERE p.id = j.project_id AND p.name = u.project AND j.name = u.name AND j.deleting_at IS NULL;

-- name: mark_deleting_of_project(project_id)!
-- The jobsets of a project that goes, whoever declared them.
UPDATE jobsets SET deleting_at = now(), next_check_at = NULL
WHERE project_id = :project_id AND deleting_at IS NULL;

-- name: list_of_project(project_id)
-- The jobsets of a project, whoever declared them.
SELECT id FROM jobsets WHERE project_id = :project_id ORDER BY id;

-- name: fetch_policy(id)$
-- What becomes of a jobset's history when its manifest goes.
SELECT p.deletion_policy FROM jobsets j JOIN projects p ON p.id = j.project_id WHERE j.id = :id;

-- name: delete_builds(id, size)$
-- Second phase, a bounded batch of a jobset's builds, oldest first. Returns how many went.
WITH gone AS (
    DELETE FROM builds WHERE id IN (
        SELECT b.id FROM builds b JOIN evaluations e ON e.id = b.evaluation_id
        JOIN jobsets j ON j.id = e.jobset_id
        WHERE j.id = :id AND j.deleting_at IS NOT NULL
        ORDER BY b.id LIMIT :size FOR UPDATE OF b
    )
    RETURNING 1
)
SELECT count(*) FROM gone;

-- name: delete_evaluations(id, size)$
-- Then a bounded batch of its evaluations, once they have no builds. Returns how many went.
WITH gone AS (
    DELETE FROM evaluations WHERE id IN (
        SELECT e.id FROM evaluations e JOIN jobsets j ON j.id = e.jobset_id
        WHERE j.id = :id AND j.deleting_at IS NOT NULL
            AND NOT EXISTS (SELECT FROM builds b WHERE b.evaluation_id = e.id)
        ORDER BY e.id LIMIT :size FOR UPDATE OF e
    )
    RETURNING 1
)
SELECT count(*) FROM gone;

-- name: delete_empty(id)$
-- Last the row itself. Returns its id if it went.
DELETE FROM jobsets j
WHERE j.id = :id AND j.deleting_at IS NOT NULL
    AND NOT EXISTS (SELECT FROM evaluations e WHERE e.jobset_id = j.id)
RETURNING j.id;

-- name: list_live_evaluations(id)
-- Evaluations of a jobset that wait, run, or have builds that do.
SELECT id, status IN ('pending', 'running') AS evaluates
FROM evaluations
WHERE jobset_id = :id AND builds_ended_at IS NULL
    AND (status IN ('pending', 'running') OR EXISTS (
        SELECT FROM builds b
        WHERE b.evaluation_id = evaluations.id AND b.status IN ('pending', 'running')))
ORDER BY id;
