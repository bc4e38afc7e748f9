-- name: list_placements(jobset_ids)
-- Whose pods would be made for some jobsets, and what their projects say of them.
SELECT j.id AS jobset_id, j.name AS jobset, p.name AS project, p.namespace, p.pods,
    EXISTS (
        SELECT FROM evaluations e
        WHERE e.jobset_id = j.id AND e.trust = 'unreviewed' AND e.builds_ended_at IS NULL
            AND e.status IN ('pending', 'running', 'completed')
    ) AS has_unreviewed
FROM jobsets j
JOIN projects p ON p.id = j.project_id
WHERE j.id = ANY (:jobset_ids::uuid[]);

-- name: set_intent(task_id, target, pod_namespace, pod_name, definition, work)^
-- The pod that a live task shall have, before it is asked for; a task has one pod in its life.
UPDATE tasks
SET executor = 'pod', target = :target, pod_namespace = :pod_namespace, pod_name = :pod_name,
    pod_definition = :definition, work = coalesce(:work::jsonb, work)
WHERE id = :task_id AND state = 'live' AND pod_name IS NULL
RETURNING id;

-- name: list_live()
-- Tasks that have or shall have a pod.
SELECT t.id, t.kind, t.target, t.pod_namespace, t.pod_name, t.pod_uid, t.pod_phase,
    t.pod_created_at IS NOT NULL AS is_created, t.begun_at IS NOT NULL AS has_begun,
    t.told_at IS NOT NULL AS has_told, t.pod_ending,
    extract(epoch FROM now() - t.created_at)::float8 AS age_s,
    extract(epoch FROM now() - t.pod_created_at)::float8 AS pod_age_s
FROM tasks t
WHERE t.state = 'live' AND t.pod_name IS NOT NULL
ORDER BY t.id;

-- name: count_live(kind)$
-- How many pods of a kind work or are on their way.
SELECT count(*)::int FROM tasks WHERE state = 'live' AND pod_name IS NOT NULL AND kind = :kind;

-- name: list_alive(task_ids)
-- Those of some tasks that are live now.
SELECT id FROM tasks WHERE id = ANY (:task_ids::uuid[]) AND state = 'live';

-- name: fetch_definition(task_id)$
-- What the API server shall be asked for; none once the task or its pod is over.
SELECT pod_definition FROM tasks
WHERE id = :task_id AND state = 'live' AND pod_ending IS NULL;

-- name: note_created(task_id, uid)^
-- Its pod is there; no row when the task or its pod is over, and the pod is nobody's.
UPDATE tasks
SET pod_uid = :uid, pod_created_at = coalesce(pod_created_at, now()),
    pod_phase = coalesce(pod_phase, 'Pending')
WHERE id = :task_id AND state = 'live' AND pod_ending IS NULL
RETURNING id;

-- name: note_phases(task_ids, phases)!
-- How far pods are; equal ones are not written again.
UPDATE tasks t
SET pod_phase = u.phase
FROM unnest(:task_ids::uuid[], :phases::text[]) AS u (id, phase)
WHERE t.id = u.id AND t.state = 'live' AND t.pod_phase IS DISTINCT FROM u.phase;

-- name: note_ending(task_id, phase, ending)^
-- Why a pod is over; the first cause counts.
UPDATE tasks
SET pod_phase = :phase, pod_ending = :ending
WHERE id = :task_id AND state = 'live' AND pod_ending IS NULL
RETURNING id;

-- name: renew_waiting(task_ids, lease_s)
-- Leases of steps whose agents have not spoken yet; which of the attempts shall stop.
WITH renewed AS (
    UPDATE leases l
    SET expires_at = now() + make_interval(secs => :lease_s::float8)
    FROM (
        SELECT l.step_id
        FROM leases l
        JOIN tasks t ON t.id = l.task_id
        WHERE t.id = ANY (:task_ids::uuid[]) AND t.state = 'live' AND t.begun_at IS NULL
            AND t.pod_ending IS NULL
        ORDER BY l.step_id
        FOR UPDATE OF l SKIP LOCKED
    ) mine
    WHERE l.step_id = mine.step_id
    RETURNING l.task_id
), tasks_renewed AS (
    UPDATE tasks t
    SET expires_at = now() + make_interval(secs => :lease_s::float8)
    WHERE t.id IN (SELECT task_id FROM renewed) AND t.state = 'live' AND t.begun_at IS NULL
)
SELECT task_id, step_id, attempt, cancel_requested
FROM leases WHERE task_id = ANY (:task_ids::uuid[]) ORDER BY step_id;

-- name: list_leases(task_ids)
-- The attempts that some tasks hold.
SELECT task_id, step_id, attempt, cancel_requested
FROM leases WHERE task_id = ANY (:task_ids::uuid[]) ORDER BY step_id;

-- name: fetch_evaluation(task_id)^
-- The jobset of a live task that evaluates.
SELECT j.id AS jobset_id, e.trust
FROM tasks t
JOIN evaluations e ON e.id = t.evaluation_id
JOIN jobsets j ON j.id = e.jobset_id
WHERE t.id = :task_id AND t.state = 'live';

-- name: list_projects()
-- What all projects say of their pods, and what is said of their declarations.
SELECT p.name AS project, p.namespace, p.pods, m.id AS resource_id, m.generation, m.conditions
FROM projects p
JOIN managed_resources m ON m.kind = 'Project' AND m.identity = p.name AND m.owns
WHERE p.deleting_at IS NULL AND m.pruning_since IS NULL
ORDER BY p.name;

-- name: set_conditions(resource_id, generation, before, conditions)^
-- What is said of a declaration, unless somebody said something else meanwhile.
UPDATE managed_resources
SET conditions = :conditions
WHERE id = :resource_id AND generation = :generation AND conditions = :before::jsonb
RETURNING id;
