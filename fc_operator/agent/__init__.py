"""What runs inside our pods: one evaluation or one batch of steps, told over HTTP to `fc server`.

It opens its task, works, and leaves. It knows no database and no Kubernetes; evaluating is
``evaluator``'s, building is ``executors``', the requests themselves are ``clients.task_protocol``'s
and what the pod looks like is decided where pods are made.
"""
