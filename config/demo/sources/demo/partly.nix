# The jobset demo/partly: `typo` does not evaluate, which is its own affair and nobody else's.
{ system ? builtins.currentSystem }:
let
  script = import ./script.nix { inherit system; };
in
{
  fine = script {
    name = "fine";
    script = ''echo "all is well" | tee "$out"'';
  };

  deep.down.fine = script {
    name = "deep-down-fine";
    script = ''echo "all is well down here too" | tee "$out"'';
  };

  typo = throw "this attribute has never been written";
}
