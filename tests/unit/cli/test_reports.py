"""What a plan or an apply says."""

from fc_operator.cli import reports


def an_object(action, **more):
    return {
        "kind": "Jobset", "namespace": "default", "name": "m", "identity": "demo/main",
        "action": action, "fields": [], "reason": "", "message": "", "path": "", "line": 0, **more,
    }  # fmt: skip


def a_report(*objects, **more):
    counts = {}
    for each in objects:
        counts[each["action"]] = counts.get(each["action"], 0) + 1
    return {
        "counts": counts, "objects": list(objects), "problems": [], "prune_blocked": "", **more,
    }  # fmt: skip


def test_each_change_is_a_line_and_unchanged_ones_are_only_counted(capsys):
    report = a_report(
        an_object("create", path="a.yaml", line=3),
        an_object("update", fields=["branch", "inputs"]),
        an_object("refuse", reason="OwnedByOther", message="config repository team owns it"),
        an_object("unchanged"),
    )
    reports.show(report, done=False, output="table")
    assert capsys.readouterr().out.splitlines() == [
        "+ Jobset demo/main  (a.yaml:3)",
        "~ Jobset demo/main: branch, inputs",
        "! Jobset demo/main: config repository team owns it",
        "1 to create, 1 to update, 1 refused, 1 unchanged",
    ]


def test_what_was_done_is_said_as_done(capsys):
    reports.show(a_report(an_object("create")), done=True, output="table")
    assert capsys.readouterr().out.endswith("1 created\n")


def test_problems_and_a_blocked_prune_go_to_standard_error(capsys):
    problem = {
        "path": "a.yaml", "line": 2, "field": "spec.branch", "kind": "Jobset", "name": "m",
        "message": "is no branch", "hint": "",
    }  # fmt: skip
    report = a_report(problems=[problem], prune_blocked="4 of 5 objects would be pruned")
    reports.show(report, done=True, output="table")
    captured = capsys.readouterr()
    assert "a.yaml:2: Jobset m: spec.branch: is no branch" in captured.err
    assert "4 of 5 objects" in captured.err
    assert captured.out == "nothing is declared\n"
