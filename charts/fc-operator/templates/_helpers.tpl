{{- define "fc-operator.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* What every object's name begins with; short enough for what follows it. */}}
{{- define "fc-operator.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "fc-operator.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "fc-operator.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels of every object. */}}
{{- define "fc-operator.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: {{ include "fc-operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Labels that tell one part's pods. Takes a list: the root and the part's name. */}}
{{- define "fc-operator.selectorLabels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "fc-operator.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "fc-operator.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* Tells our pods from those of other installations: a label's value. */}}
{{- define "fc-operator.installation" -}}
{{- printf "%s.%s" .Release.Namespace (include "fc-operator.fullname" .) | trunc 63 | trimSuffix "-" | trimSuffix "." -}}
{{- end -}}

{{/* How our pods reach the server. */}}
{{- define "fc-operator.serverUrl" -}}
http://{{ include "fc-operator.fullname" . }}-server.{{ .Release.Namespace }}.svc:{{ .Values.server.service.port }}
{{- end -}}

{{/* Where pods may run, as JSON: {"targets": [...]}, each with its namespace and service account. */}}
{{- define "fc-operator.targets" -}}
{{- $account := printf "%s-pods" (include "fc-operator.fullname" .) -}}
{{- $targets := .Values.targets -}}
{{- if not $targets -}}
{{- $targets = list (dict "name" "default" "objectNamespaces" (list "*")) -}}
{{- end -}}
{{- $whole := list -}}
{{- range $targets -}}
{{- $whole = append $whole (merge (dict) . (dict "namespace" $.Release.Namespace "serviceAccountName" $account)) -}}
{{- end -}}
{{- dict "targets" $whole | toPrettyJson -}}
{{- end -}}

{{/* The settings of all processes. JSON is YAML, and keeps whole numbers whole. */}}
{{- define "fc-operator.settings" -}}
{{- $kubernetes := dict
  "enabled" true
  "namespace" .Release.Namespace
  "installation" (include "fc-operator.installation" .)
  "image" (include "fc-operator.image" .)
  "image_pull_policy" .Values.image.pullPolicy
  "server_url" (include "fc-operator.serverUrl" .)
  "targets_file" "/etc/fc-operator/targets.yaml" -}}
{{- $web := dict "host" "0.0.0.0" "port" 8080 "public_url" .Values.publicUrl -}}
{{- $settings := dict
  "kubernetes" $kubernetes
  "operator" (dict "health_port" 8081 "namespaces" (ternary list (include "fc-operator.rbac.objectNamespaces" . | fromJsonArray) (eq .Values.rbac.scope "Cluster")))
  "scheduler" (dict "health_port" 8082)
  "builds" (dict "local" false)
  "secrets" (dict "source" "Kubernetes")
  "config" (dict "builder_namespaces" (list .Release.Namespace))
  "web" $web
  "log" (dict "format" "Json") -}}
{{- with .Values.objects.url -}}
{{- $_ := set $settings "state" (dict "objects_url" .) -}}
{{- end -}}
{{- mustMergeOverwrite $settings (deepCopy .Values.settings) | toPrettyJson -}}
{{- end -}}

{{/* A pod's security, as the standard "restricted" wants it. */}}
{{- define "fc-operator.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "fc-operator.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* The environment of all processes. Takes a list: the root, and the key of the database's address. */}}
{{- define "fc-operator.environment" -}}
{{- $root := index . 0 -}}
- name: FC_CONFIG_FILE
  value: /etc/fc-operator/fc.yaml
- name: FC_ENCRYPTION_KEY
  valueFrom:
    secretKeyRef:
      name: {{ $root.Values.existingSecret }}
      key: {{ $root.Values.existingSecretKey }}
{{- if $root.Values.postgresql.enabled }}
- name: FC_DATABASE_URL
  value: postgresql://fc@{{ include "fc-operator.fullname" $root }}-postgresql:5432/fc
- name: PGPASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ $root.Values.postgresql.existingSecret }}
      key: {{ $root.Values.postgresql.existingSecretKey }}
{{- else }}
- name: FC_DATABASE_URL
  valueFrom:
    secretKeyRef:
      name: {{ $root.Values.externalDatabase.existingSecret }}
      key: {{ index . 1 }}
{{- end }}
{{- end -}}

{{/* For who has nothing to do with logs, products and the cache, and gets no key to them. */}}
{{- define "fc-operator.withoutObjects" -}}
- name: FC_STATE_OBJECTS_URL
  value: ""
{{- end -}}

{{/* The init container that brings the schema up; two at once wait for each other. */}}
{{- define "fc-operator.migrate" -}}
{{- if .Values.migrations.enabled }}
- name: migrate
  image: {{ include "fc-operator.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args: [migrate, "--wait", {{ .Values.migrations.waitSeconds | quote }}]
  env:
    {{- $key := .Values.externalDatabase.migrationSecretKey | default .Values.externalDatabase.existingSecretKey }}
    {{- include "fc-operator.environment" (list . $key) | nindent 4 }}
  securityContext:
    {{- include "fc-operator.containerSecurity" . | nindent 4 }}
  resources:
    requests: {cpu: 100m, memory: 128Mi}
    limits: {memory: 512Mi}
  volumeMounts:
    {{- include "fc-operator.commonMounts" . | nindent 4 }}
{{- end }}
{{- end -}}

{{/* Mounts of all processes. */}}
{{- define "fc-operator.commonMounts" -}}
- {name: settings, mountPath: /etc/fc-operator, readOnly: true}
- {name: temporary, mountPath: /tmp}
- {name: home, mountPath: /home/fc}
- {name: state, mountPath: /var/lib/fc-operator}
{{- end -}}

{{/* Mounts of those that read and write logs, products and the cache. */}}
{{- define "fc-operator.mounts" -}}
{{ include "fc-operator.commonMounts" . }}
{{- if not .Values.objects.url }}
- {name: objects, mountPath: /var/lib/fc-operator/objects}
{{- end }}
{{- end -}}

{{/* Volumes of all processes. Takes a list: the root, and the size of the state. */}}
{{- define "fc-operator.commonVolumes" -}}
{{- $root := index . 0 -}}
- name: settings
  configMap:
    name: {{ include "fc-operator.fullname" $root }}
- name: temporary
  emptyDir:
    sizeLimit: 1Gi
- name: home
  emptyDir:
    sizeLimit: 1Gi
- name: state
  emptyDir:
    sizeLimit: {{ index . 1 }}
{{- end -}}

{{/* Volumes of those that read and write logs, products and the cache. Takes a list, as above. */}}
{{- define "fc-operator.volumes" -}}
{{- $root := index . 0 -}}
{{ include "fc-operator.commonVolumes" . }}
{{- if not $root.Values.objects.url }}
- name: objects
  persistentVolumeClaim:
    claimName: {{ include "fc-operator.objectsClaim" $root }}
{{- end }}
{{- end -}}

{{- define "fc-operator.objectsClaim" -}}
{{- .Values.objects.persistence.existingClaim | default (printf "%s-objects" (include "fc-operator.fullname" .)) -}}
{{- end -}}

{{/* What a pod has that its part's values say. Takes a list: the root, and the part's values. */}}
{{- define "fc-operator.placement" -}}
{{- $root := index . 0 -}}
{{- $part := index . 1 -}}
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* What can't be installed, and why. */}}
{{- define "fc-operator.check" -}}
{{- if not .Values.existingSecret }}
{{- fail "existingSecret is needed: the Secret with the installation's key. Make one with: kubectl create secret generic fc --from-literal=encryption-key=\"$(head -c 32 /dev/urandom | base64)\"" }}
{{- end }}
{{- if and .Values.postgresql.enabled .Values.externalDatabase.existingSecret }}
{{- fail "postgresql.enabled and externalDatabase.existingSecret exclude each other" }}
{{- end }}
{{- if and .Values.postgresql.enabled (not .Values.postgresql.existingSecret) }}
{{- fail "postgresql.existingSecret is needed: the Secret with the password of postgresql.enabled" }}
{{- end }}
{{- if not (or .Values.postgresql.enabled .Values.externalDatabase.existingSecret) }}
{{- fail "externalDatabase.existingSecret is needed: the Secret with PostgreSQL's address; or postgresql.enabled to look around" }}
{{- end }}
{{- if and .Values.server.ingress.enabled (not .Values.server.ingress.hosts) }}
{{- fail "server.ingress.hosts is needed where server.ingress.enabled" }}
{{- end }}
{{- if and .Values.server.httpRoute.enabled (not .Values.server.httpRoute.parentRefs) }}
{{- fail "server.httpRoute.parentRefs is needed where server.httpRoute.enabled" }}
{{- end }}
{{- if not (or .Values.objects.url .Values.objects.persistence.enabled) }}
{{- fail "objects.url or objects.persistence.enabled is needed: server and scheduler share logs and products" }}
{{- end }}
{{- end -}}

{{- define "fc-operator.rbac.hookRules" -}}
- apiGroups: [fc-operator.dev]
  resources: [configrepositories]
  verbs: [get, list, create, patch, delete]
{{- end -}}

{{/* A Job's specification. Takes a list: the root, whose account it has, and its arguments. */}}
{{- define "fc-operator.job" -}}
{{- $root := index . 0 -}}
backoffLimit: 3
activeDeadlineSeconds: 300
template:
  metadata:
    labels:
      {{- include "fc-operator.labels" $root | nindent 6 }}
      app.kubernetes.io/component: hooks
  spec:
    restartPolicy: Never
    serviceAccountName: {{ include "fc-operator.fullname" $root }}-{{ index . 1 }}
    automountServiceAccountToken: true
    enableServiceLinks: false
    securityContext:
      {{- include "fc-operator.podSecurity" $root | nindent 6 }}
    {{- with include "fc-operator.placement" (list $root $root.Values.operator) | trim }}
    {{- . | nindent 4 }}
    {{- end }}
    containers:
      - name: hook
        image: {{ include "fc-operator.image" $root }}
        imagePullPolicy: {{ $root.Values.image.pullPolicy }}
        args: {{ index . 2 | toJson }}
        env:
          {{- include "fc-operator.environment" (list $root $root.Values.externalDatabase.existingSecretKey) | nindent 10 }}
          {{- include "fc-operator.withoutObjects" $root | nindent 10 }}
          {{- with $root.Values.operator.extraEnv }}
          {{- toYaml . | nindent 10 }}
          {{- end }}
        securityContext:
          {{- include "fc-operator.containerSecurity" $root | nindent 10 }}
        resources:
          requests: {cpu: 50m, memory: 128Mi}
          limits: {memory: 512Mi}
        volumeMounts:
          {{- include "fc-operator.commonMounts" $root | nindent 10 }}
    volumes:
      {{- include "fc-operator.commonVolumes" (list $root "1Gi") | nindent 6 }}
{{- end -}}
