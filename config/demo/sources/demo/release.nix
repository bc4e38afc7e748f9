# The jobset demo/main. Its inputs arrive as arguments; the defaults serve `nix-build release.nix`.
{ system ? builtins.currentSystem
, greeting ? "Hello"
, shout ? false
, quotes ? ../quotes
}:
let
  script = import ./script.nix { inherit system; };

  hello = script {
    name = "hello-1.0";
    meta.description = "A program that greets";
    meta.license.shortName = "MIT";
    script = ''
      phase buildPhase
      echo "compiling hello"
      sleep 1
      mkdir -p "$out/bin"
      printf '#!/bin/sh\necho "%s, world"\n' '${greeting}' > "$out/bin/hello"
      chmod +x "$out/bin/hello"
      phase checkPhase
      "$out/bin/hello"
    '';
  };

  # Depends on hello, on a boolean and on a file of the git input.
  banner = script {
    name = "banner";
    meta.schedulingPriority = 200;
    script = ''
      "${hello}/bin/hello" > text
      cat "${quotes}/first.txt" >> text
      ${if shout then "tr '[:lower:]' '[:upper:]' < text > $out" else "cp text $out"}
      cat "$out"
    '';
  };

  manual = script {
    name = "manual-1.0";
    meta.description = "The manual, as a folder and as one file";
    script = ''
      mkdir -p "$out/share/doc" "$out/nix-support"
      echo "<!doctype html><title>hello</title><p>It greets." > "$out/share/doc/index.html"
      echo "It greets." > "$out/share/manual.txt"
      echo "doc manual $out/share/doc index.html" >> "$out/nix-support/hydra-build-products"
      echo "file text $out/share/manual.txt" >> "$out/nix-support/hydra-build-products"
    '';
  };

  unit = script {
    name = "hello-tests";
    meta.timeout = 60;
    script = ''
      phase checkPhase
      for test in 1 2 3 4 5; do
        echo "test $test of 5: ok"
        sleep 0.3
      done
      mkdir -p "$out/nix-support"
      "${hello}/bin/hello" > "$out/report.txt"
      echo "report tests $out/report.txt" >> "$out/nix-support/hydra-build-products"
      echo "tests.passed 5" >> "$out/nix-support/hydra-metrics"
      echo "coverage 87.5 %" >> "$out/nix-support/hydra-metrics"
    '';
  };

  tarball = script {
    name = "hello-1.0-source";
    script = ''
      mkdir -p "$out/tarballs" "$out/nix-support"
      cp "${./README.md}" README.md
      tar --sort=name --mtime=@0 --owner=0 --group=0 -cf "$out/tarballs/hello-1.0.tar" README.md
      echo "file source-dist $out/tarballs/hello-1.0.tar" >> "$out/nix-support/hydra-build-products"
      echo "hello-1.0" > "$out/nix-support/hydra-release-name"
    '';
  };
in
{
  inherit hello banner tarball;
  docs = { inherit manual; };
  tests.hello = { inherit unit; };

  # Green when all of its constituents are.
  release = script {
    name = "release";
    _hydraAggregate = true;
    constituents = [ hello manual unit tarball ];
    meta.description = "All that a release needs";
    script = ''
      mkdir "$out"
      for each in $constituents; do ln -s "$each" "$out/"; done
    '';
  };
}
