-- What has become of each key from one complete run to another: a row for each key that has a page in either of them.
-- docs/refresh.md has the table of all pairs. A run that is not published can be compared too: it is read in its part,
-- whose place is in `runs` and `corpora`. All names are qualified, so that the caller's search_path does not matter.
DO $make$
DECLARE
    home text := (SELECT quote_ident(nspname) FROM pg_namespace
                  WHERE oid = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('runs')));
BEGIN
    EXECUTE replace($functions$
CREATE OR REPLACE FUNCTION HOME.changes(old_run text, new_run text)
RETURNS TABLE (digest bytea, key text, change text) LANGUAGE plpgsql STABLE SECURITY INVOKER AS $body$
DECLARE
    parts text[];
    part text;
    is_complete boolean;
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY[old_run, new_run] LOOP
        SELECT pg_catalog.format('%s.%I',
                                 coalesce(pg_catalog.quote_ident(nullif(c.schema, ''::text)), $home$HOME$home$),
                                 pg_catalog.concat('pages_r', r.run_id)),
               r.state = 'complete'::text
        INTO part, is_complete
        FROM HOME.runs r LEFT JOIN HOME.corpora c ON c.corpus = r.corpus WHERE r.name = wanted;
        IF part IS NULL THEN
            RAISE EXCEPTION 'no run %', coalesce(wanted, 'of that run_id') USING ERRCODE = 'invalid_parameter_value';
        ELSIF NOT is_complete THEN
            RAISE EXCEPTION 'run % is not complete', wanted USING ERRCODE = 'invalid_parameter_value',
                HINT = 'Its keys without a page would seem to be removed. Finish it first.';
        END IF;
        parts := parts || part;
    END LOOP;
    RETURN QUERY EXECUTE pg_catalog.format($query$
        SELECT coalesce(n.digest, o.digest), coalesce(n.key, o.key),
               CASE WHEN n.has_content AND o.has_content IS NOT TRUE THEN 'added'
                    WHEN n.has_content AND (
                        CASE WHEN n.content_digest = ''::bytea OR o.content_digest = ''::bytea
                             THEN n.body_digest IS DISTINCT FROM o.body_digest
                             ELSE coalesce(n.content_digest, n.body_digest)
                                  IS DISTINCT FROM coalesce(o.content_digest, o.body_digest) END) THEN 'changed'
                    WHEN n.has_content AND n.stale THEN 'stale'
                    WHEN n.has_content THEN 'unchanged'
                    WHEN n.outcome = 'failed'::text THEN 'failed'
                    WHEN o.has_content IS NOT TRUE THEN 'absent'
                    WHEN n.digest IS NULL THEN 'removed'
                    ELSE 'gone' END
        FROM (SELECT *, outcome = 'stored'::text OR outcome = 'unchanged'::text OR stale IS TRUE AS has_content
              FROM %s) o
        FULL JOIN (SELECT *, outcome = 'stored'::text OR outcome = 'unchanged'::text OR stale IS TRUE AS has_content
                   FROM %s) n ON n.digest = o.digest
    $query$, parts[1], parts[2]);
END
$body$;

CREATE OR REPLACE FUNCTION HOME.changes(old_run integer, new_run integer)
RETURNS TABLE (digest bytea, key text, change text) LANGUAGE sql STABLE SECURITY INVOKER AS $body$
    SELECT c.digest, c.key, c.change
    FROM HOME.changes((SELECT r.name FROM HOME.runs r WHERE r.run_id = $1),
                      (SELECT r.name FROM HOME.runs r WHERE r.run_id = $2)) c
$body$;
    $functions$, 'HOME', home);
END
$make$;
