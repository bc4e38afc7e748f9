# A derivation that runs a shell script with the tools of the machine: what stdenv would be, in ten lines.
{ system }:
{ name, script, meta ? { }, ... }@arguments:
let
  prelude = ''
    set -eu
    phase() {
      printf '@nix { "action": "setPhase", "phase": "%s" }\n' "$1" >&"$NIX_LOG_FD"
    }
  '';
  built = derivation (removeAttrs arguments [ "script" "meta" ] // {
    inherit name system;
    builder = "/bin/sh";
    args = [ "-c" (prelude + script) ];
    PATH = "/usr/bin:/bin";
  });
in
built // { inherit meta; }
