-- Builders over SSH: what was pinned by hand, and what a look at one found.
ALTER TABLE remote_builders
    -- By `fc builder pin`; a key in the manifest goes before it.
    ADD COLUMN pinned_host_key TEXT,
    -- A look was asked for; whoever looks takes it away.
    ADD COLUMN test_requested_at TIMESTAMPTZ,
    ADD COLUMN tested_at TIMESTAMPTZ,
    ADD COLUMN findings JSONB NOT NULL DEFAULT '[]';
