-- name: insert(actor, action, object, details)!
-- Who changed what by hand.
INSERT INTO audit_log (actor, action, object, details)
VALUES (:actor, :action, :object, :details::jsonb);
