{{- define "modelchain.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 53 | trimSuffix "-" }}
{{- end }}

{{/* Of objects in the release's namespace; the longest, a dashboard's, still fits. */}}
{{- define "modelchain.fullname" -}}
{{- $name := include "modelchain.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 53 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 53 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 53 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Of cluster-scoped objects: releases of one name in several namespaces must not meet. */}}
{{- define "modelchain.clusterName" -}}
{{- printf "%s:%s" .Release.Namespace (include "modelchain.fullname" .) }}
{{- end }}

{{- define "modelchain.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "modelchain.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "modelchain.selectorLabels" -}}
app.kubernetes.io/name: {{ include "modelchain.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Ours win over commonLabels. */}}
{{- define "modelchain.labels" -}}
{{- $own := include "modelchain.selectorLabels" . | fromYaml }}
{{- $_ := set $own "app.kubernetes.io/version" .Chart.AppVersion }}
{{- $_ := set $own "app.kubernetes.io/managed-by" .Release.Service }}
{{- $_ := set $own "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63) }}
{{- merge $own .Values.commonLabels | toYaml }}
{{- end }}

{{/* An image, of a dictionary: image (repository, tag, digest), version (where the tag is empty). */}}
{{- define "modelchain.image" -}}
{{- if .image.digest }}
{{- printf "%s@%s" .image.repository .image.digest }}
{{- else }}
{{- printf "%s:%s" .image.repository (default .version .image.tag) }}
{{- end }}
{{- end }}

{{/* What the operator does with chains, in each namespace that it looks after. */}}
{{- define "modelchain.rules" -}}
# What to train.
- apiGroups: [modelchain.dev]
  resources: [modelchains]
  verbs: [get, list, watch]
# How it stands.
- apiGroups: [modelchain.dev]
  resources: [modelchains/status]
  verbs: [update]
# The jobs.
- apiGroups: [kubeflow.org]
  resources: [pytorchjobs]
  verbs: [get, list, watch, create, delete]
- apiGroups: [trainer.kubeflow.org]
  resources: [trainjobs]
  verbs: [get, list, watch, create, delete]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, delete]
# What stands between a TrainJob and its pods.
- apiGroups: [jobset.x-k8s.io]
  resources: [jobsets]
  verbs: [list, watch]
# Names for the pods of an Indexed Job.
- apiGroups: [""]
  resources: [services]
  verbs: [get, create]
# Exit codes and termination messages; pods whose job is gone.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, delete]
# Why pods are not made or not set up; what `kubectl describe` shows.
- apiGroups: [""]
  resources: [events]
  verbs: [list, create]
# Whether Kueue would hold a job, and why one that it holds waits.
- apiGroups: [kueue.x-k8s.io]
  resources: [localqueues, workloads]
  verbs: [list]
# Keys and certificate of a chain's store.
- apiGroups: [""]
  resources: [secrets, configmaps]
  verbs: [get]
{{- end }}

{{/* As the operator's environment has them: uri or uri=endpoint, separated by commas. */}}
{{- define "modelchain.ownIdentityStores" -}}
{{- $stores := list }}
{{- range .Values.ownIdentityStores }}
{{- $stores = append $stores (empty .endpointUrl | ternary .uri (printf "%s=%s" .uri .endpointUrl)) }}
{{- end }}
{{- join "," $stores }}
{{- end }}

{{/* Helm's own message, where the CRD is not of this release, does not say what to do. */}}
{{- define "modelchain.requireCrdIsOurs" -}}
{{- $name := "modelchains.modelchain.dev" }}
{{- $there := lookup "apiextensions.k8s.io/v1" "CustomResourceDefinition" "" $name }}
{{- if $there }}
{{- $annotations := default dict $there.metadata.annotations }}
{{- $release := get $annotations "meta.helm.sh/release-name" }}
{{- $namespace := get $annotations "meta.helm.sh/release-namespace" }}
{{- if not (and (eq $release .Release.Name) (eq $namespace .Release.Namespace)) }}
{{- $owner := empty $release | ternary "of no Helm release" (printf "of the release %s in namespace %s" $release $namespace) }}
{{- $own := printf "kubectl annotate crd %s --overwrite meta.helm.sh/release-name=%s meta.helm.sh/release-namespace=%s && kubectl label crd %s --overwrite app.kubernetes.io/managed-by=Helm" $name .Release.Name .Release.Namespace $name }}
{{- fail (printf "\n\nThe CRD %s is there already and is %s.\nTo leave it to its owner, who then upgrades it:  --set crds.enabled=false\nTo give it to this release, once its owner is gone:  %s\n" $name $owner $own) }}
{{- end }}
{{- end }}
{{- end }}
