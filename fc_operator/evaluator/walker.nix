# The walk over a tree of jobs (reference: the rules of nix-eval-jobs). One expression in one
# process; every line goes to stderr by builtins.trace behind the token of this run:
#   M <path>            about to force the attribute at <path>; what kills Nix now is its doing
#   J <row>             a job, finished but for its meta
#   X <meta>            meta of the job before
#   E <path> or [path, text]   a caught error; without a text, somebody asks Nix again for it
{ token          # prefix of our lines; user code can't know it
, root           # the value, before it is called
, arguments      # by name
, resume         # a path in walking order to go on from, or null
, inclusive      # whether the attribute at `resume` itself is walked again
, only           # force just this path, without a net, so that Nix tells its error; or null
}:
let
  inherit (builtins)
    attrNames deepSeq elem filter foldl' functionArgs head intersectAttrs isAttrs isBool isFunction
    isInt isList isString length listToAttrs map replaceStrings seq tail toJSON toXML trace tryEval
    typeOf unsafeDiscardStringContext unsafeGetAttrPos;

  depthMax = 64;
  # A set with the names of so many sets above it contains itself, if positions can't tell.
  repeatsMax = 4;

  say = kind: value: trace "${token}${kind} ${toJSON value}" null;
  text = value: unsafeDiscardStringContext (toString value);

  # Functions ---------------------------------------------------------------------------------
  contains = part: whole: replaceStrings [ part ] [ "" ] whole != whole;
  # `x: …` and `{ }: …` look the same to functionArgs; only the latter wants a set.
  wantsSet = f: contains "<attrspat" (toXML f);
  takesAll = f: contains "ellipsis=" (toXML f);
  missing = f:
    let formals = functionArgs f;
    in filter (name: !formals.${name} && !(arguments ? ${name})) (attrNames formals);
  call = f: f (if takesAll f then arguments else intersectAttrs (functionArgs f) arguments);

  # Leaves ------------------------------------------------------------------------------------
  isDerivation = v: isAttrs v && v.type or null == "derivation";

  outputsOf = v: listToAttrs (map
    (name: {
      inherit name;
      value = text (if v ? ${name} then v.${name}.outPath else v.outPath);
    })
    (v.outputs or [ "out" ]));

  constituentsOf = v:
    let given = v.constituents or [ ];
        all = if isList given then given else [ given ];
    in {
      constituents = map (c: text c.drvPath) (filter isDerivation all);
      namedConstituents = filter isString all;
      globConstituents = v._hydraGlobConstituents or false;
    };

  rowOf = path: v: {
    attrPath = path;
    name = text (v.name or "");
    system = text (v.system or "");
    drvPath = text v.drvPath;
    outputs = outputsOf v;
  } // (if v._hydraAggregate or false == true then constituentsOf v else { });

  # Only what is shown or obeyed, each field for itself: a broken one hides no other.
  licenseOf = l:
    if isString l then [ l ]
    else if isList l then foldl' (sum: each: sum ++ licenseOf each) [ ] l
    else if isAttrs l then [ (l.shortName or l.spdxId or l.fullName or "") ]
    else [ ];
  maintainersOf = m:
    if isString m then [ m ]
    else if isList m then foldl' (sum: each: sum ++ maintainersOf each) [ ] m
    else if isAttrs m then [ (m.email or m.github or m.name or "") ]
    else [ ];
  metaOf = v:
    let
      meta = v.meta or { };
      # (): a field that can't be had is left out.
      field = name: read:
        let got = tryEval (let value = read meta.${name}; in deepSeq value value);
        in if meta ? ${name} && got.success && got.value != null
           then [ { inherit name; value = got.value; } ] else [ ];
      one = test: value: if test value then value else null;
    in
    if !(isAttrs meta) then { } else listToAttrs (
      field "description" (one isString) ++ field "homepage" (v: one isString (if isList v && v != [ ] then head v else v))
      ++ field "license" licenseOf ++ field "maintainers" maintainersOf
      ++ field "timeout" (one isInt) ++ field "maxSilent" (one isInt)
      ++ field "schedulingPriority" (one isInt)
      ++ field "isChannel" (one isBool) ++ field "isHydraChannel" (one isBool));

  # deepSeq: forcing a value to its head alone would let an error out later.
  leaf = path: v:
    let row = tryEval (let r = rowOf path v; in deepSeq r r);
        meta = tryEval (let m = metaOf v; in deepSeq m m);
    in if !(v ? drvPath) then say "E" [ path "it calls itself a derivation and has no drvPath" ]
       else if row.success
       then seq (say "J" row.value) (if meta.success then say "X" meta.value else null)
       else say "E" path;

  # Sets --------------------------------------------------------------------------------------
  positions = names: v: map (name: unsafeGetAttrPos name v) names;
  # Nix can't compare identities. The same names at the same places of the source are the same
  # literal inside itself; names alone are not (a matrix of systems by systems).
  isCycle = names: v: above:
    let same = filter (set: set.names == names) above;
        here = positions names v;
        known = filter (place: place != null) here;
    in names != [ ] && same != [ ]
       && (length same >= repeatsMax
           || known != [ ] && elem here (map (set: set.positions) same));

  # Sorted names and depth first: a path says what comes before it.
  walkSet = path: v: above: from:
    let
      names = attrNames v;
      first = head from;
      rest = tail from;
      here = { inherit names; positions = positions names v; };
      step = name:
        if from == null || first < name then attribute path name v (above ++ [ here ]) null
        else if name < first then null
        else if rest != [ ] then attribute path name v (above ++ [ here ]) rest
        else if inclusive then attribute path name v (above ++ [ here ]) null
        else null;
    in
    if length path > depthMax then say "E" [ path "nested deeper than ${toString depthMax} sets" ]
    else if isCycle names v above then say "E" [ path "attribute set contains itself (cycle)" ]
    else foldl' (_: name: step name) null names;

  attribute = path: name: v: above: from:
    let here = path ++ [ name ];
        got = tryEval (let value = v.${name}; in seq value value);
    in seq (say "M" here) (if got.success then visit here got.value above from else say "E" here);

  visit = path: v: above: from:
    if isDerivation v then leaf path v
    else if isAttrs v then
      (let kind = tryEval (v.type or null); in
       if kind.success then walkSet path v above from else say "E" path)
    else if isFunction v && wantsSet v then
      if missing v != [ ] then say "E" [ path (cannotCall v) ]
      else
        let got = tryEval (let value = call v; in seq value value); in
        if !got.success then say "E" path
        else if isFunction got.value then null
        else visit path got.value above from
    else null;

  cannotCall = f:
    "cannot evaluate a function that has an argument without a value ('${head (missing f)}')";

  # The root is always called and entered.
  called =
    if isFunction root && wantsSet root then
      if missing root != [ ] then throw (cannotCall root) else call root
    else root;
  start =
    if isDerivation called then leaf [ ] called
    else if isAttrs called then walkSet [ ] called [ ] resume
    else throw "the expression gives ${typeOf called} and not a set of jobs";

  # Asking again ------------------------------------------------------------------------------
  open = v: if isFunction v && wantsSet v then call v else v;
  target = foldl' (v: name: open v.${name}) called only;
  ask = if isDerivation target then deepSeq (rowOf only target) null else seq target null;
in
if only == null then seq (say "M" [ ]) start else ask
