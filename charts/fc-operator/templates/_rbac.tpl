{{/*
What the RBAC templates share. They take from values.yaml:

  rbac.create            whether any of it is made
  rbac.scope             Namespaced: Roles only, in the namespaces that are listed. Cluster: our kinds
                         are watched in all namespaces; secrets and pods stay namespace by namespace
  rbac.objectNamespaces  namespaces, besides the release's own, that hold objects of our kinds and
                         the secrets that they refer to
  rbac.podNamespaces     namespaces, besides the release's own and those of targets, that pods may be in
  rbac.secretNames       the only secrets that may be read there; empty: all of these namespaces
  rbac.aggregate         whether the cluster's roles view, edit and admin learn our kinds

and from _helpers.tpl: fc-operator.fullname and fc-operator.labels.
*/}}

{{/* The name of what stands beside things of other installations: in other namespaces, or in none. */}}
{{- define "fc-operator.rbac.name" -}}
{{- printf "%s-%s" .Release.Namespace (include "fc-operator.fullname" .) -}}
{{- end -}}

{{/* All namespaces with objects and secrets, as JSON. */}}
{{- define "fc-operator.rbac.objectNamespaces" -}}
{{- prepend (.Values.rbac.objectNamespaces | default list) .Release.Namespace | uniq | toJson -}}
{{- end -}}

{{/* All namespaces with pods, as JSON. */}}
{{- define "fc-operator.rbac.podNamespaces" -}}
{{- $names := prepend (.Values.rbac.podNamespaces | default list) .Release.Namespace -}}
{{- range (include "fc-operator.targets" . | fromJson).targets -}}
{{- $names = append $names .namespace -}}
{{- end -}}
{{- $names | uniq | toJson -}}
{{- end -}}

{{/* What the operator does with our kinds: reads them, and writes its finalizer and their status. */}}
{{- define "fc-operator.rbac.objectRules" -}}
- apiGroups: [fc-operator.dev]
  resources: [projects, jobsets, remotebuilders, configrepositories]
  verbs: [get, list, watch, patch]
- apiGroups: [fc-operator.dev]
  resources: [projects/status, jobsets/status, remotebuilders/status, configrepositories/status]
  verbs: [patch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
{{- end -}}

{{/* Secrets by name: never listed, never watched. */}}
{{- define "fc-operator.rbac.secretRules" -}}
- apiGroups: [""]
  resources: [secrets]
  {{- with .Values.rbac.secretNames }}
  resourceNames: {{ toJson . }}
  {{- end }}
  verbs: [get]
{{- end -}}

{{/* What the scheduler does with the pods of a target's namespace. */}}
{{- define "fc-operator.rbac.podRules" -}}
- apiGroups: [""]
  resources: [pods]
  verbs: [create, get, list, delete]
- apiGroups: [""]
  resources: [pods/log]
  verbs: [get]
# Why a pod does not begin is told in events alone.
- apiGroups: [""]
  resources: [events]
  verbs: [list]
{{- end -}}

{{/* A Role, or a binding to one: (dict "root" $ "namespace" … "part" … "rules" …). */}}
{{- define "fc-operator.rbac.role" -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {{ include "fc-operator.rbac.name" .root }}-{{ .part }}
  namespace: {{ .namespace }}
  labels:
    {{- include "fc-operator.labels" .root | nindent 4 }}
rules:
  {{- .rules | nindent 2 }}
{{- end -}}

{{/* (dict "root" $ "namespace" … "part" … "kind" Role|ClusterRole "accounts" (list …)). */}}
{{- define "fc-operator.rbac.binding" -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ include "fc-operator.rbac.name" .root }}-{{ .part }}
  namespace: {{ .namespace }}
  labels:
    {{- include "fc-operator.labels" .root | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ .kind }}
  name: {{ include "fc-operator.rbac.name" .root }}-{{ .part }}
subjects:
  {{- range .accounts }}
  - kind: ServiceAccount
    name: {{ include "fc-operator.fullname" $.root }}-{{ . }}
    namespace: {{ $.root.Release.Namespace }}
  {{- end }}
{{- end -}}
