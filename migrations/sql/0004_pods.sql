-- 0004: pods. What an agent is told and what it reports, and the binary cache.

ALTER TABLE tasks
    -- The administrator's target that it runs in, by name; NULL for what runs in no pod.
    ADD COLUMN target TEXT,
    ADD COLUMN pod_namespace TEXT,
    ADD COLUMN pod_name TEXT,
    ADD COLUMN pod_uid TEXT,
    -- Pending, Running, Succeeded, Failed or Gone, as last seen; NULL before it was created.
    ADD COLUMN pod_phase TEXT CHECK (pod_phase IN ('Pending', 'Running', 'Succeeded', 'Failed', 'Gone')),
    -- Why it ended, told from its status: {"reason", "message", "class"}; NULL while it runs.
    ADD COLUMN pod_ending JSONB,
    ADD COLUMN pod_created_at TIMESTAMPTZ,
    -- What the API server is asked to make, without the token: kept, so that asking again is the same.
    ADD COLUMN pod_definition JSONB,
    -- What the agent has to do, as JSON; never a secret.
    ADD COLUMN work JSONB,
    -- Git credentials for the fetch step alone, encrypted with the installation's key; removed when fetched.
    ADD COLUMN credentials_ciphertext BYTEA,
    -- The token in a pod's definition opens each phase once; each phase then has its own.
    ADD COLUMN fetch_token_hash BYTEA,
    ADD COLUMN fetched_at TIMESTAMPTZ,
    ADD COLUMN work_token_hash BYTEA,
    ADD COLUMN begun_at TIMESTAMPTZ,
    ADD COLUMN heartbeat_at TIMESTAMPTZ,
    -- Who opened it: {"host", "nix", "evaluator", "fc"}.
    ADD COLUMN agent JSONB,
    -- What the fetch step told of the commit.
    ADD COLUMN checkout JSONB,
    -- The numbers that its next report and its next event have.
    ADD COLUMN next_report INTEGER NOT NULL DEFAULT 0,
    ADD COLUMN next_event BIGINT NOT NULL DEFAULT 0,
    -- When its agent told the end; nothing that it says afterwards counts.
    ADD COLUMN told_at TIMESTAMPTZ;
CREATE INDEX tasks_pods ON tasks (pod_namespace, pod_name) WHERE state = 'live' AND pod_name IS NOT NULL;

-- What the agent of an evaluation tells, in order, until the scheduler has taken it.
CREATE TABLE task_reports (
    task_id UUID NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
    seq INTEGER NOT NULL CHECK (seq >= 0),
    -- zstd of JSON lines.
    payload BYTEA NOT NULL,
    received_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (task_id, seq)
);
ALTER TABLE task_reports ALTER COLUMN payload SET STORAGE EXTERNAL;

-- The binary cache: one row per store path that it has.
CREATE TABLE cache_paths (
    -- The 32 digits of the path's hash part.
    hash_part TEXT PRIMARY KEY CHECK (hash_part ~ '^[0-9a-df-np-sv-z]{32}$'),
    store_path TEXT NOT NULL UNIQUE,
    nar_hash TEXT NOT NULL,
    nar_size BIGINT NOT NULL CHECK (nar_size > 0),
    file_hash TEXT NOT NULL,
    file_size BIGINT NOT NULL CHECK (file_size > 0),
    -- Where the compressed NAR is in the object store.
    object_key TEXT NOT NULL,
    -- Base names, as narinfo writes them.
    reference_names TEXT[] NOT NULL DEFAULT '{}',
    deriver TEXT,
    content_address TEXT,
    signatures TEXT[] NOT NULL DEFAULT '{}',
    -- The task or key that brought it.
    uploaded_by TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
CREATE INDEX cache_paths_object ON cache_paths (object_key);
CREATE INDEX cache_paths_file ON cache_paths (file_hash);
CREATE INDEX cache_paths_nar ON cache_paths (nar_hash);

-- NARs that were received whole and read to their end, for the narinfo that follows each.
CREATE TABLE cache_nars (
    -- The task or key that brought it, and the hash by which its narinfo will name it.
    uploaded_by TEXT NOT NULL,
    upload_hash TEXT NOT NULL,
    compression TEXT NOT NULL,
    nar_hash TEXT NOT NULL,
    nar_size BIGINT NOT NULL CHECK (nar_size > 0),
    -- Of the content, where the NAR is one plain file.
    flat_hash TEXT,
    -- Of what lies in the object store, which is zstd whatever was uploaded.
    file_hash TEXT NOT NULL,
    file_size BIGINT NOT NULL CHECK (file_size > 0),
    object_key TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (uploaded_by, upload_hash, compression)
);

-- Builds whose outputs may have to be brought into the cache; with one, they leave it soon.
CREATE INDEX builds_unsigned ON builds (completed_at)
    WHERE NOT signed AND status IN ('succeeded', 'failed_with_output');

-- Whether strangers may read what a project built; NULL: as they may see the project.
ALTER TABLE projects ADD COLUMN cache_public BOOLEAN;

-- Which projects a path came from: who may read one of them may read it.
CREATE TABLE cache_path_projects (
    hash_part TEXT NOT NULL REFERENCES cache_paths (hash_part) ON DELETE CASCADE,
    project_id UUID NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
    PRIMARY KEY (hash_part, project_id)
);
CREATE INDEX cache_path_projects_project ON cache_path_projects (project_id);

-- Where the pods of a project run and what it asks for them: spec.pods of its manifest.
ALTER TABLE projects ADD COLUMN pods JSONB NOT NULL DEFAULT '{}';
