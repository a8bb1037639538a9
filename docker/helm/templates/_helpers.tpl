{{- define "podstream.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- $full := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) }}
{{- /* Room for the components' names, and for what a StatefulSet adds to its pods' labels. */}}
{{- default $full .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* Labels of an object. Called with (list root component). */}}
{{- define "podstream.labels" -}}
{{- $root := index . 0 -}}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
app.kubernetes.io/part-of: podstream
{{ include "podstream.selector" . }}
{{- end }}

{{/* Labels that never change. Called with (list root component). */}}
{{- define "podstream.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ default $root.Chart.Name $root.Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
{{- with index . 1 }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end }}

{{- define "podstream.serviceAccount" -}}
{{- default (.Values.serviceAccount.create | ternary (include "podstream.fullname" .) "default") .Values.serviceAccount.name }}
{{- end }}

{{/* Called with (list root repository). */}}
{{- define "podstream.image" -}}
{{- $image := (index . 0).Values.image -}}
{{- $name := printf "%s:%s" (index . 1) (default (index . 0).Chart.AppVersion $image.tag) }}
{{- with $image.registry }}{{ trimSuffix "/" . }}/{{ end }}{{ $name }}
{{- end }}

{{/* Kafka's files that are given, as a JSON list of flag, file and where it comes from. */}}
{{- define "podstream.files.kafka" -}}
{{- with .Values.kafka -}}
{{- include "podstream.files.given" (list
  (dict "flag" "kafka-ca-file" "file" "ca.crt" "from" .tls.ca)
  (dict "flag" "kafka-cert-file" "file" "tls.crt" "from" .tls.cert)
  (dict "flag" "kafka-key-file" "file" "tls.key" "from" .tls.key)
  (dict "flag" "kafka-key-password-file" "file" "key-password" "from" .tls.keyPassword)
  (dict "flag" "kafka-password-file" "file" "password" "from" .sasl.password)) }}
{{- end }}
{{- end }}

{{/* The same of Prometheus' files. */}}
{{- define "podstream.files.prometheus" -}}
{{- with .Values.prometheus -}}
{{- include "podstream.files.given" (list
  (dict "flag" "bearer-token-file" "file" "bearer-token" "from" .bearerToken)
  (dict "flag" "basic-auth-file" "file" "basic-auth" "from" .basicAuth)
  (dict "flag" "ca-file" "file" "ca.crt" "from" .tls.ca)
  (dict "flag" "client-cert-file" "file" "tls.crt" "from" .tls.cert)
  (dict "flag" "client-key-file" "file" "tls.key" "from" .tls.key)) }}
{{- end }}
{{- end }}

{{- define "podstream.files.given" -}}
{{- $given := list }}
{{- range . }}
{{- if or .from.secret .from.value }}
{{- $given = append $given . }}
{{- end }}
{{- end }}
{{- toJson $given }}
{{- end }}

{{/* A program's configuration file: for all its commands where Kafka is, so that those typed in a pod know it too, and for
     its own one the user's settings and the chart's. Called with (list root command settings ours). */}}
{{- define "podstream.config" -}}
{{- $root := index . 0 }}
{{- with $root.Values }}
{{- $kafka := dict "topic-prefix" .kafka.topicPrefix
  "bootstrap-servers" (required "kafka.bootstrapServers is missing: HOST:PORT of your Kafka" .kafka.bootstrapServers) }}
{{- if .kafka.tls.enabled }}
{{- $_ := set $kafka "kafka-tls" true }}
{{- end }}
{{- if .kafka.sasl.mechanism }}
{{- $_ := set $kafka "kafka-sasl" .kafka.sasl.mechanism }}
{{- $_ := set $kafka "kafka-user" .kafka.sasl.user }}
{{- end }}
{{- range include "podstream.files.kafka" $root | fromJsonArray }}
{{- $_ := set $kafka .flag (printf "/etc/podstream/kafka/%s" .file) }}
{{- end }}
{{- $ours := mergeOverwrite (dict "log-level" .log.level "log-format" .log.format) (index $ 3) }}
{{- toYaml (dict "defaults" $kafka (index $ 1) (mergeOverwrite (deepCopy (index $ 2)) $ours)) }}
{{- end }}
{{- end }}

{{- define "podstream.config.poller" -}}
{{- $url := required "prometheus.url is missing: like http://prometheus-operated.monitoring.svc:9090" .Values.prometheus.url }}
{{- $ours := dict "url" $url "on-conflict" "wait" "web-listen-address" ":9420" "partitions" .Values.kafka.partitions }}
{{- range include "podstream.files.prometheus" . | fromJsonArray }}
{{- $_ := set $ours .flag (printf "/etc/podstream/prometheus/%s" .file) }}
{{- end }}
{{- include "podstream.config" (list . "run" .Values.poller.settings $ours) }}
{{- end }}

{{- define "podstream.config.worker" -}}
{{- $ours := dict "web-listen-address" ":6066" "partitions" .Values.kafka.partitions }}
{{- include "podstream.config" (list . "worker" .Values.worker.settings $ours) }}
{{- end }}

{{- define "podstream.config.files" -}}
{{- include "podstream.config" (list . "files" .Values.files.settings (dict "storage" "/data")) }}
{{- end }}

{{- define "podstream.config.raw-files" -}}
{{- include "podstream.config" (list . "raw-files" .Values.rawFiles.settings (dict "storage" "/data")) }}
{{- end }}

{{/* Metadata of pods. Called with (list root component). */}}
{{- define "podstream.podMetadata" -}}
{{- $root := index . 0 }}
{{- $component := index . 1 -}}
labels:
  {{- include "podstream.selector" . | nindent 2 }}
  {{- with $root.Values.pod.labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  # Another configuration, or another secret of the chart's: other pods.
  checksum/config: {{ include (printf "podstream.config.%s" $component) $root | sha256sum }}
  checksum/secrets: {{ include (print $root.Template.BasePath "/secrets.yaml") $root | sha256sum }}
  {{- with $root.Values.pod.annotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* What the specs of all pods have in common. Called with (list root component). */}}
{{- define "podstream.podSpec" -}}
{{- $root := index . 0 -}}
serviceAccountName: {{ include "podstream.serviceAccount" $root }}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: {{ $root.Values.pod.terminationGracePeriodSeconds }}
securityContext:
  {{- toYaml $root.Values.pod.securityContext | nindent 2 }}
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $root.Values.pod.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $root.Values.pod.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $root.Values.pod.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $root.Values.pod.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{- define "podstream.spread" -}}
{{- $spread := (index . 0).Values.spread }}
{{- if $spread.enabled -}}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: {{ $spread.topologyKey }}
    whenUnsatisfiable: {{ $spread.whenUnsatisfiable }}
    labelSelector:
      matchLabels:
        {{- include "podstream.selector" . | nindent 8 }}
{{- end }}
{{- end }}

{{- define "podstream.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{/* The images' compiled kernels where they can be written to, as numba insists: an emptyDir begins empty. Called with (list root repository). */}}
{{- define "podstream.kernels" -}}
{{- $root := index . 0 -}}
initContainers:
  - name: kernels
    image: {{ include "podstream.image" . }}
    imagePullPolicy: {{ $root.Values.image.pullPolicy }}
    command: [cp, -r, /var/cache/podstream/., /kernels]
    {{- include "podstream.containerSecurity" $root | nindent 4 }}
    resources:
      requests: {cpu: 10m, memory: 32Mi}
      limits: {memory: 128Mi}
    volumeMounts:
      - {name: kernels, mountPath: /kernels}
{{- end }}

{{- define "podstream.probes" -}}
startupProbe:
  httpGet: {path: /-/healthy, port: web}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /-/healthy, port: web}
  periodSeconds: 15
  timeoutSeconds: 5
  failureThreshold: 4
{{- end }}

{{/* Called with (list root component). */}}
{{- define "podstream.volumeMounts" -}}
{{- $root := index . 0 -}}
- {name: config, mountPath: /etc/podstream/config, readOnly: true}
{{- if include "podstream.files.kafka" $root | fromJsonArray }}
- {name: kafka, mountPath: /etc/podstream/kafka, readOnly: true}
{{- end }}
{{- if and (eq (index . 1) "poller") (include "podstream.files.prometheus" $root | fromJsonArray) }}
- {name: prometheus, mountPath: /etc/podstream/prometheus, readOnly: true}
{{- end }}
- {name: tmp, mountPath: /tmp}
{{- end }}

{{/* Called with (list root component). */}}
{{- define "podstream.volumes" -}}
{{- $root := index . 0 -}}
{{- $full := include "podstream.fullname" $root -}}
- name: config
  configMap:
    name: {{ $full }}-{{ index . 1 }}
{{- with include "podstream.files.kafka" $root | fromJsonArray }}
- name: kafka
  {{- include "podstream.projected" (list (printf "%s-kafka" $full) .) | nindent 2 }}
{{- end }}
{{- if eq (index . 1) "poller" }}
{{- with include "podstream.files.prometheus" $root | fromJsonArray }}
- name: prometheus
  {{- include "podstream.projected" (list (printf "%s-prometheus" $full) .) | nindent 2 }}
{{- end }}
{{- end }}
- name: tmp
  emptyDir: {sizeLimit: 64Mi}
{{- end }}

{{/* Files out of several Secrets in one folder. Called with (list the-chart's-secret files). */}}
{{- define "podstream.projected" -}}
{{- $ours := index . 0 -}}
projected:
  defaultMode: 0440
  sources:
    {{- range index . 1 }}
    - secret:
        name: {{ .from.secret | default $ours }}
        items:
          - {key: {{ empty .from.secret | ternary .file .from.key | quote }}, path: {{ .file }}}
    {{- end }}
{{- end }}
