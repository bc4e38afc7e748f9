# The jobset demo/failures: each job ends in another way, and expected.yaml says in which.
{ system ? builtins.currentSystem }:
let
  script = import ./script.nix { inherit system; };

  broken = script {
    name = "broken";
    meta.description = "Its builder exits with 3";
    script = ''
      echo "gcc: internal compiler error: just kidding"
      exit 3
    '';
  };
in
{
  inherit broken;

  # Never started: what it needs has failed.
  dependent = script {
    name = "dependent";
    script = ''cp "${broken}/result" "$out"'';
  };

  # Would take a minute, may take three seconds.
  slow = script {
    name = "slow";
    meta.timeout = 3;
    script = ''
      for second in $(seq 60); do echo "still working, second $second"; sleep 1; done
      touch "$out"
    '';
  };

  # Says nothing for longer than it may.
  silent = script {
    name = "silent";
    meta.maxSilent = 2;
    script = ''
      echo "last words"
      sleep 60
      touch "$out"
    '';
  };

  # Makes its output and says in it that something is wrong, as a test report does.
  report = script {
    name = "report";
    script = ''
      mkdir -p "$out/nix-support"
      echo "2 of 5 tests failed" | tee "$out/report.txt"
      echo "report tests $out/report.txt" > "$out/nix-support/hydra-build-products"
      touch "$out/nix-support/failed"
    '';
  };
}
