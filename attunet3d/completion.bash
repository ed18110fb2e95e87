# Completion of attunet3d in bash and zsh. In ~/.bashrc:   source <(attunet3d --completion)
# In ~/.zshrc before it:   autoload -U bashcompinit && bashcompinit
_attunet3d() {
  local word=${COMP_WORDS[COMP_CWORD]} command=${COMP_WORDS[1]}
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "$(attunet3d --help | sed -n 's/^  \([a-z][a-z-]*\)  .*/\1/p')" -- "$word"))
  elif [[ $word == -* ]]; then
    COMPREPLY=($(compgen -W "$(attunet3d "$command" --help | grep -o -- '--[a-z][a-z-]*' | sort -u)" -- "$word"))
  fi
}
complete -o default -F _attunet3d attunet3d
